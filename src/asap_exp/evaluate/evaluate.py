"""Evaluation of every variant of one compiled teacher on the test split."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from asap_exp.attention import attention_origin
from asap_exp.core.agreement import of_all
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.console import say, shown
from asap_exp.core.errors import UserError
from asap_exp.core.lineage import evaluation_product, makes, uploads
from asap_exp.core.locks import part_held
from asap_exp.core.manifest import LaterManifest, attempts_at, manifest
from asap_exp.core.objectives import OBJECTIVES
from asap_exp.core.run_log import run_log
from asap_exp.core.runs import public_config
from asap_exp.core.score import Score
from asap_exp.core.team import Team
from asap_exp.core.tracking import wandb_run
from asap_exp.data.loader import BatchLoader
from asap_exp.evaluate import record
from asap_exp.evaluate.baseline import baseline
from asap_exp.evaluate.behaviour import measure_behaviour
from asap_exp.evaluate.kept import kept, kept_or_added, parts_of
from asap_exp.evaluate.measure import Keep, Measured, Part, measure_map
from asap_exp.evaluate.resolve import Subject, resolve
from asap_exp.evaluate.wandb_log import log_evaluation, log_inputs, numbers
from asap_exp.report.records import METRICS, read_record
from asap_exp.report.tables import print_drift, print_evaluation


@run_log("evaluate")
def evaluate(config: EvaluateConfig) -> Path:
    """Measure a compiled map and its teacher; return the path of the record.

    On several devices each process calls this, and rank 0 alone writes.
    """
    all_threads = torch.get_num_threads()
    team = Team(config.together)
    with team.working():
        return lead(config, team, all_threads) if team.leads else follow(config, team)


def lead(config: EvaluateConfig, team: Team, all_threads: int) -> Path:
    """Measure as rank 0, which times alone, with `all_threads` of a CPU, and writes the record."""
    subject = resolve(config, team)
    run, public, folder = subject.run, public_config(config), subject.out(config)
    facts = {
        "stage": "evaluate",
        "earlier_attempts": attempts_at(folder / "manifest.json", LaterManifest),
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
            label=run.label,
            group=run.group,
            job_type="evaluate",
            part=folder.name,
            tags=[str(run.config.task.name), subject.artifact.identity["calibration"]["name"]],
        ) as tracker,
        manifest(folder / "manifest.json", **facts) as started,
        team.unbroken(),
    ):
        log_inputs(tracker, subject)
        validation = subject.validation()
        parts = parts_of(subject, config, folder, started)
        team.begin(Orders(str(run.path), str(subject.folder), str(folder), parts.contents))
        check_same_variants(subject)
        threads = run.config.trainer.cpu_threads or all_threads
        keep = partial(kept_or_added, parts)
        measured = measure_subject(subject, config, team, validation, keep, threads)
        if (texts := subject.data.labelled_texts()) is not None:
            say("Fitting the linear baseline")
            row, right, labels = baseline(*texts, subject.test.num_samples)
            measured.rows.append(row)
            if measured.tested is not None:
                measured.tested.add(row["key"], right, labels)
        found = record.write(folder, subject, measured, config, started)
        parts.remove()
        if tracker is not None:
            log_evaluation(tracker, found)
            product = evaluation_product(run, folder, numbers(found))
            makes(tracker, product, *uploads(config.logger, folder / METRICS))
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


def follow(config: EvaluateConfig, team: Team) -> Path:
    """Measure as another rank than 0, on its part of the samples, once rank 0 has begun."""
    orders: Orders = team.orders()
    subject = resolve(replace(config, teacher=orders.teacher, artifact=orders.artifact), team)
    check_same_variants(subject)
    measure_subject(subject, config, team, subject.validation(), partial(kept, orders.parts))
    return Path(orders.folder) / METRICS


class Orders(NamedTuple):
    """Folders of the teacher, of the map and of the record, and parts kept, all found by rank 0."""

    teacher: str
    artifact: str
    folder: str
    parts: dict[str, Part]


def check_same_variants(subject: Subject) -> None:
    """Raise UserError if another rank has found other maps or baselines to measure."""
    mine = [row.key for row in subject.variants]
    if any(keys != mine for keys in of_all(mine)):
        raise UserError(
            "the processes of this evaluation found different maps or matched baselines: one was "
            "finished or removed meanwhile. Start the same command again"
        )


def measure_subject(
    subject: Subject,
    config: EvaluateConfig,
    team: Team,
    validation: BatchLoader | None,
    keep: Keep,
    latency_threads: int | None = None,
) -> Measured:
    """Measure every variant, as far as it is not kept; on rank 0 speed too."""
    measured = measure_map(
        subject.net,
        subject.artifact,
        subject.variants,
        subject.test,
        precision=subject.precision,
        fidelity_samples=config.fidelity_samples,
        latency=config.latency,
        validation=validation,
        ranks=team.ranks,
        latency_threads=latency_threads,
        of_tokens=subject.data.objective.of_tokens,
        keep=keep,
    )
    if not config.behaviour:
        return measured
    behaviour = keep(
        "behaviour",
        lambda: measure_behaviour(
            subject.variants,
            subject.test,
            precision=subject.precision,
            samples=config.fidelity_samples,
            ranks=team.ranks,
        ),
    )
    return replace(measured, behaviour=behaviour)
