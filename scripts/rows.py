"""The published rows of the results: `conf/reproduce/ROW.yaml`, what each runs and what it made.

A row is lists of overrides for the stages. Where one has several values (`calibration.seed=1,2,0`)
the stage runs once for each, in that order.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asap_exp.core.composing import compose
from asap_exp.core.conf_files import conf_dir, options
from asap_exp.core.config import EvaluateConfig, TrainConfig
from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.files import read_json
from asap_exp.core.overrides import parsed_override
from asap_exp.core.runs import run_name
from asap_exp.distill.config import DistillConfig

TEACHER = "sinkhorn"
"""The row's own attention, whose options its recipe says."""


@dataclass
class Row:
    """What is run for a row; the last map of `distill` is that of the table.

    `pretrain` trains the run whose weights `train` starts from, `baselines` are attentions trained
    by the same recipe and shown beside it. `distill_all` is given to every calibration. `paper` is
    what others published, in words.
    """

    name: str
    task: str
    train: list[str]
    distill: list[list[str]]
    evaluate: list[list[str]]
    seeds: list[int] = field(default_factory=lambda: [0])
    pretrain: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=lambda: ["softmax"])
    distill_all: list[str] = field(default_factory=list)
    paper: str = ""

    @property
    def calibrations(self) -> list[list[str]]:
        """The overrides of each run of `distill`, in order."""
        return [each for given in self.distill for each in swept([*self.distill_all, *given])]

    @property
    def evaluations(self) -> list[list[str]]:
        """The overrides of each run of `evaluate`, in order."""
        return [each for given in self.evaluate for each in swept(given)]

    def commands(self, attentions: list[str]) -> Iterator[str]:
        """What the row runs for these attentions, the baselines and TEACHER, as command lines.

        RUN and MAP stand for what the one before made.
        """
        for seed, attention in itertools.product(self.seeds, attentions):
            own = attention == TEACHER
            common = [f"seed={seed}", *([] if own else [f"attention={attention}"])]
            start = ["init_from=RUN"] if self.pretrain else []
            if self.pretrain:
                yield command("train", [*common, *self.pretrain])
            yield command("train", [*common, *self.train, *start])
            if own:
                yield from (command("distill", ["teacher=RUN", *c]) for c in self.calibrations)
                yield from (command("evaluate", ["artifact=MAP", *e]) for e in self.evaluations)


def swept(overrides: list[str]) -> list[list[str]]:
    """Every combination of the values of `overrides`, the first key's changing slowest."""
    each = []
    for text in overrides:
        override = parsed_override(text)
        values = [text]
        if override.is_sweep_override():
            values = [f"{override.key_or_group}={v}" for v in override.sweep_string_iterator()]
        each.append(values)
    return [list(choice) for choice in itertools.product(*each)]


def command(stage: str, overrides: list[str]) -> str:
    words = (f'"{word}"' if set("[,'") & set(word) else word for word in overrides)
    return " ".join(["python", "-m", f"asap_exp.{stage}", *words])


def row_names() -> list[str]:
    return options(conf_dir() / "reproduce")


@cache
def load_row(name: str) -> Row:
    """The row of this name; UserError where there is none, or its file is no row."""
    check_choice("row", name, tuple(row_names()))
    file = conf_dir() / "reproduce" / f"{name}.yaml"
    try:
        tree = OmegaConf.merge(OmegaConf.structured(Row), OmegaConf.load(file), {"name": name})
        row = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from error
    assert isinstance(row, Row)
    return row


def rows_of(task: str) -> list[Row]:
    """The rows of a task; UserError where it has none."""
    rows = [load_row(name) for name in row_names()]
    check_choice("task", task, tuple(sorted({row.task for row in rows})))
    return [row for row in rows if row.task == task]


# Which row made a record


def row_of(record: dict[str, Any]) -> str | None:
    """The name of the row that makes a record of `evaluate`; None where no row does.

    It does where it trains the same run, fits the same map and evaluates on the same images.
    """
    names = (name for name in row_names() if makes(load_row(name), record))
    return next(names, None)


def makes(row: Row, record: dict[str, Any]) -> bool:
    if record["task"] != row.task or record["seed"] not in row.seeds:
        return False
    return (
        trains(row, record["run"], record["manifests"]["train"])
        and fits(row, record["artifact"])
        and evaluates(row, record)
    )


def trains(row: Row, run: str, manifest: dict[str, Any]) -> bool:
    """Whether the row trains the run of this name and manifest, and the one it started from."""
    config = manifest["config"]
    seed, precision = manifest["seed"], config["trainer"]["precision"]
    initial = config.get("init_from")
    if row.pretrain:
        first = resolved_name([f"seed={seed}", *row.pretrain], precision, None)
        if initial != first:
            return False
    return run == resolved_name([f"seed={seed}", *row.train], precision, initial)


def resolved_name(overrides: list[str], precision: str, initial: str | None) -> str:
    """The name of the run of these overrides, where `precision: auto` became `precision`."""
    config = composed_training(tuple(overrides))
    trainer = replace(config.trainer, precision=precision)
    return run_name(replace(config, trainer=trainer, init_from=initial))


@cache
def composed_training(overrides: tuple[str, ...]) -> TrainConfig:
    return compose("train", list(overrides), TrainConfig)


def fits(row: Row, artifact: dict[str, Any]) -> bool:
    """Whether the row fits this map; records of older versions do not say every setting."""
    made = artifact["calibration"]
    if artifact.get("budget"):
        return False
    for overrides in row.calibrations:
        given = composed_calibration(tuple(overrides))
        unsaid = given.keys() - made.keys()
        if {key: given.get(key) for key in made} == made and not any(
            given[key] is True for key in unsaid
        ):
            return True
    return False


@cache
def composed_calibration(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose("distill", list(overrides), DistillConfig).fitted.identity()


def evaluates(row: Row, record: dict[str, Any]) -> bool:
    """Whether the row evaluates on the same images: all of the test split, or corrupted alike."""
    corruption = record.get("corruption")
    rows = record["test"]["rows"]
    for overrides in row.evaluations:
        config = composed_evaluation(tuple(overrides))
        name, severity = config.corruption.name, config.corruption.severity
        given = None if name is None else {"name": name, "severity": severity}
        if corruption == given and config.max_test_rows in (None, rows):
            return True
    return False


@cache
def composed_evaluation(overrides: tuple[str, ...]) -> EvaluateConfig:
    return compose("evaluate", list(overrides), EvaluateConfig)


def published(results: Path) -> list[dict[str, Any]]:
    """The records of `evaluate` in the folder of results."""
    return [read_json(file) for file in sorted((results / "records").glob("*.json"))]


@dataclass
class Estimate:
    """Hours that a row took by its published records; `seeds` of them are known.

    What no record says is not in it: the pre-training, and maps that are not those of the table
    count as long as that one.
    """

    hours: float
    device: str
    seeds: int


def estimate(row: Row, records: list[dict[str, Any]]) -> Estimate | None:
    """How long the row takes, by the manifests of the records that it makes; None without any."""
    made = [record for record in records if makes(row, record)]
    runs = {record["run"]: record for record in made}
    if not runs:
        return None
    seconds = 0.0
    for record in runs.values():
        manifests = record["manifests"]
        trained = ["train", *(name for name in row.baselines if manifests.get(name))]
        seconds += sum(manifests[name]["wall_seconds"] for name in trained)
        seconds += manifests["distill"]["wall_seconds"] * len(row.calibrations)
        seconds += manifests["evaluate"]["wall_seconds"] * len(row.evaluations)
    return Estimate(seconds / 3600, made[0]["device"], len(runs))
