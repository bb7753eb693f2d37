"""Evaluation of every variant of one compiled teacher on the test split."""

from pathlib import Path

from asap_exp.attention import attention_origin
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.console import say, shown
from asap_exp.core.locks import part_held
from asap_exp.core.manifest import manifest
from asap_exp.core.objectives import OBJECTIVES
from asap_exp.core.run_log import run_log
from asap_exp.core.runs import public_config
from asap_exp.core.score import Score
from asap_exp.core.tracking import wandb_run
from asap_exp.evaluate import record
from asap_exp.evaluate.baseline import baseline_row
from asap_exp.evaluate.measure import Measured, measure_map
from asap_exp.evaluate.resolve import Subject, resolve
from asap_exp.evaluate.wandb_log import log_evaluation
from asap_exp.report.records import METRICS, read_record
from asap_exp.report.tables import print_drift, print_evaluation


@run_log("evaluate")
def evaluate(config: EvaluateConfig) -> Path:
    """Measure a compiled map and its teacher; return the path of the record."""
    subject = resolve(config)
    run, public, folder = subject.run, public_config(config), subject.out(config)
    facts = {
        "stage": "evaluate",
        "seed": run.config.seed,
        "teacher": run.name,
        "config": public,
        "data": subject.data.identity,
        **attention_origin(run.config.attention["name"]),
    }
    with (
        part_held(run.path, folder),
        wandb_run(
            config.logger,
            {
                **public,
                "teacher_config": public_config(run.config),
                "map": subject.artifact.identity,
            },
            folder=run.path,
            group=run.group,
            job_type="evaluate",
            part=folder.name,
            tags=[str(run.config.task.name), subject.artifact.identity["calibration"]["name"]],
        ) as tracker,
        manifest(folder / "manifest.json", **facts) as started,
    ):
        measured = measure_subject(subject, config)
        found = record.write(folder, subject, measured, config, started)
        if tracker is not None:
            log_evaluation(tracker, found)
    print_evaluation(found)
    if measured.drift is not None:
        print_drift(measured.drift)
    say(f"Record: {shown(folder / METRICS)}")
    return folder / METRICS


def score(record: Path) -> Score:
    """Return the compiled model's metric on the test split."""
    found = read_record(record)
    objective = OBJECTIVES[found.objective]
    (row,) = (row for row in found.rows if row.key == "asap")
    return objective.score("test", getattr(row, objective.metric))


def measure_subject(subject: Subject, config: EvaluateConfig) -> Measured:
    """Measure every variant and, for labelled texts, a linear model on word counts."""
    measured = measure_map(
        subject.net,
        subject.artifact,
        subject.variants,
        subject.test,
        precision=subject.precision,
        fidelity_samples=config.fidelity_samples,
        latency=config.latency,
        validation=subject.validation(),
    )
    if (texts := subject.data.labelled_texts()) is not None:
        say("Fitting the linear baseline")
        measured.rows.append(baseline_row(*texts, subject.test.num_samples))
    return measured
