"""`check=true`: the records that a report would show are read, and its folder is looked at."""

from asap_exp.core.checking import check_place
from asap_exp.core.config import ReportConfig
from asap_exp.core.console import counted, say, shown, warn
from asap_exp.core.errors import UserError
from asap_exp.core.records.store import record_files
from asap_exp.core.runs import all_runs
from asap_exp.report.published import own_folder
from asap_exp.report.records import evaluations, named, run_of_task
from asap_exp.report.report import none_found, published_groups


def check(config: ReportConfig) -> None:
    """Check the report of `config` and print what it would show."""
    out, task = own_folder(config.folder), config.task.name
    found = check_place(out, 0)
    alone = None if config.run is None else run_of_task(config.paths, config.run, task)
    whole = trained = 0
    for run in all_runs(config.paths, task) if alone is None else [alone]:
        trained += run.finished
        for file in evaluations(run):
            try:
                named(file, run)
            except UserError as error:
                if alone is not None:
                    raise
                warn(f"{file} is left out: {error}")
            else:
                whole += 1
    everything = task is None and alone is None
    kinds = ("benchmark", "steps") if everything else ()
    benchmarks = sum(len([*config.paths.runs.glob(f"{kind}/*/metrics.json")]) for kind in kinds)
    earlier = record_files(out / "records")
    if not (whole or trained or benchmarks or earlier or published_groups(config)):
        raise none_found(config)
    say(f"  disk  {found['disk']}")
    say(
        f"Checked, nothing was written. Would show in {shown(out)}: "
        f"{counted(whole, 'evaluation')}, {counted(trained, 'training')} and "
        f"{counted(benchmarks, 'benchmark')}, beside {counted(len(earlier), 'record')} there"
    )
