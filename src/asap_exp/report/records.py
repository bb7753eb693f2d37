"""Evaluation records, copied from run directories into `records/`."""

from pathlib import Path
from typing import Any

from asap_exp.core.config import PathsConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.store import RecordKind, gathered
from asap_exp.core.runs import Run, all_runs, check_task, named_run, stage_finished

FORMAT = 2
METRICS = "metrics.json"


def manifests(value: dict[str, Any]) -> dict[str, Any]:
    found = value.get("manifests")
    there = found if isinstance(found, dict) else {}
    return {stage: there.get(stage) for stage in ("train", "distill", "evaluate")}


EVALUATIONS = RecordKind(
    EvaluationRecord, "evaluation record", "python -m asap_exp.evaluate", FORMAT, manifests
)
read_record, write_record = EVALUATIONS.read, EVALUATIONS.write
load_records = EVALUATIONS.load


def gather(paths: PathsConfig, task: str | None, run: str | None, folder: Path) -> list[Path]:
    """Copy the record of every finished evaluation into `folder`; return the copies.

    A damaged one is left out with a warning; if it belongs to the given `run`, raise UserError.
    """
    runs = all_runs(paths, task) if run is None else [run_of_task(paths, run, task)]
    sources = {file: each for each in runs for file in evaluations(each)}
    return gathered(sources, lambda f: named(f, sources[f]), folder, strict=run is not None)


def evaluations(run: Run) -> list[Path]:
    """Return the records of the evaluations of `run`, including those missing though finished."""
    folders = sorted(run.path.glob("evaluate/*"))
    return [f / METRICS for f in folders if (f / METRICS).is_file() or stage_finished(f)]


def named(source: Path, run: Run) -> tuple[str, Any]:
    """Return the copy's name of a record of `run`, and its JSON; UserError if of another run."""
    value = read_json(source)
    record = EVALUATIONS.from_json(value, source)
    if record.run != run.name:
        raise UserError(
            f"{source} is of the run {record.run} and not of {run.name}; remove it, or make it "
            f"again with: {EVALUATIONS.command} teacher={run.path}"
        )
    return f"{record.run.replace('/', '-')}-{source.parent.name}.json", value


def run_of_task(paths: PathsConfig, given: str, task: str | None) -> Run:
    """Return the run of a name or path; UserError if there is none, or it is of another task."""
    run = named_run(paths, given)
    check_task(run, task)
    return run
