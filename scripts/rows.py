"""Published rows of the results: `conf/reproduce/ROW.yaml`, their commands and their records.

A row consists of lists of overrides for the stages. If an override has several values
(`calibration.seed=1,2,0`) the stage runs once per value, in that order.
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
from asap_exp.train.trainer import resolved

TEACHER = "sinkhorn"
"""Attention of the row itself, whose options come from its recipe."""


UNSAID_AT_FIRST = {
    "memory_mib": 4096, "steps": ["ridge"], "sequential": False, "candidates": 32
}  # fmt: skip
"""Settings of a calibration that the first records do not have, and what they were."""


@dataclass
class Row:
    """Commands of one row; the last map of `distill` is shown in the table.

    `pretrain` trains the run whose weights `train` starts from, and `baselines` are attentions,
    each with its own overrides, trained with the same recipe and shown next to it. `distill_all` is
    given to every calibration.
    `paper` describes the results that others published, and `unpublished` says why the row has no
    published record yet.
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
    unpublished: str = ""

    @property
    def calibrations(self) -> list[list[str]]:
        """Overrides of each run of `distill`, in order."""
        return [each for given in self.distill for each in swept([*self.distill_all, *given])]

    @property
    def evaluations(self) -> list[list[str]]:
        """Overrides of each run of `evaluate`, in order."""
        return [each for given in self.evaluate for each in swept(given)]

    def commands(self, attentions: list[str]) -> Iterator[str]:
        """Yield the command lines for these attentions, the baselines and TEACHER.

        RUN and MAP stand for the result of the previous command.
        """
        for seed, attention in itertools.product(self.seeds, attentions):
            own = attention == TEACHER
            common = [f"seed={seed}", *attention_overrides(attention)]
            start = ["init_from=RUN"] if self.pretrain else []
            if self.pretrain:
                yield command("train", [*common, *self.pretrain])
            yield command("train", [*common, *self.train, *start])
            if own:
                yield from (command("distill", ["teacher=RUN", *c]) for c in self.calibrations)
                yield from (command("evaluate", ["artifact=MAP", *e]) for e in self.evaluations)


def attention_overrides(attention: str) -> list[str]:
    """Return the overrides of a baseline, such as "coarse attention.subset=grid", or of TEACHER."""
    if attention == TEACHER:
        return []
    name, *overrides = attention.split()
    return [f"attention={name}", *overrides]


def swept(overrides: list[str]) -> list[list[str]]:
    """Return every combination of the values of `overrides`; the first key changes slowest."""
    each = []
    for text in overrides:
        override = parsed_override(text)
        values = [text]
        if override.is_sweep_override():
            values = [f"{override.key_or_group}={v}" for v in override.sweep_string_iterator()]
        each.append(values)
    return [list(choice) for choice in itertools.product(*each)]


def command(stage: str, overrides: list[str]) -> str:
    """Return a command line with the overrides quoted for a shell."""
    words = (f'"{word}"' if set("[,'") & set(word) else word for word in overrides)
    return " ".join(["python", "-m", f"asap_exp.{stage}", *words])


def row_names() -> list[str]:
    """Return the names of all rows."""
    return options(conf_dir() / "reproduce")


@cache
def load_row(name: str) -> Row:
    """Return the row of this name; raise UserError if it does not exist or is not a valid row."""
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
    """Return the rows of a task; raise UserError if it has none."""
    rows = [load_row(name) for name in row_names()]
    check_choice("task", task, tuple(sorted({row.task for row in rows})))
    return [row for row in rows if row.task == task]


# Finding the row of a record


def row_of(record: dict[str, Any]) -> str | None:
    """Return the name of the row that makes a record of `evaluate`, or None.

    A row makes it if it trains the same run, fits the same map and evaluates on the same images.
    """
    names = (name for name in row_names() if makes(load_row(name), record))
    return next(names, None)


def makes(row: Row, record: dict[str, Any]) -> bool:
    """Return True if the row makes this record."""
    if record["task"] != row.task or record["seed"] not in row.seeds:
        return False
    return (
        trains(row, record["run"], record["manifests"]["train"])
        and fits(row, record["artifact"])
        and evaluates(row, record)
    )


def trains(row: Row, run: str, manifest: dict[str, Any]) -> bool:
    """Return True if the row trains the run of this name and manifest, and its initial run."""
    config = manifest["config"]
    seed, precision = manifest["seed"], config["trainer"]["precision"]
    initial = config.get("init_from")
    if row.pretrain:
        first = resolved_name([f"seed={seed}", *row.pretrain], precision, None)
        if initial != first:
            return False
    return run == resolved_name([f"seed={seed}", *row.train], precision, initial)


def resolved_name(overrides: list[str], precision: str, initial: str | None) -> str:
    """Return the name of the run of these overrides with `precision` in place of `auto`."""
    config = composed_training(tuple(overrides))
    # It may have been trained elsewhere.
    anywhere = replace(config.trainer, accelerator="auto", precision="auto")
    attention = resolved(replace(config, trainer=anywhere)).attention
    trainer = replace(config.trainer, precision=precision)
    return run_name(replace(config, attention=attention, trainer=trainer, init_from=initial))


@cache
def composed_training(overrides: tuple[str, ...]) -> TrainConfig:
    return compose("train", list(overrides), TrainConfig)


def fits(row: Row, artifact: dict[str, Any]) -> bool:
    """Return True if the row fits this map."""
    made = artifact["calibration"]
    if artifact.get("budget"):
        return False
    for overrides in row.calibrations:
        if contradicts(overrides, made):
            continue
        given = composed_calibration(tuple(overrides))
        if given == UNSAID_AT_FIRST | made:
            return True
    return False


def contradicts(overrides: list[str], made: dict[str, Any]) -> bool:
    """Return True if a number among the overrides is not that of the map.

    A row may have dozens of calibrations that differ in a seed, and each takes 0.1 s to compose.
    """
    given = {each.key_or_group: each.value() for each in map(parsed_override, overrides)}
    numbers = {key: value for key, value in given.items() if isinstance(value, int | float)}
    return any(numbers.get(f"calibration.{key}", value) != value for key, value in made.items())


@cache
def composed_calibration(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose("distill", list(overrides), DistillConfig).fitted.identity()


def evaluates(row: Row, record: dict[str, Any]) -> bool:
    """Return True if the row evaluates on the same images: all, or with the same corruption."""
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
    """Return the records of `evaluate` in the folder of results."""
    return [read_json(file) for file in sorted((results / "records").glob("*.json"))]


@dataclass
class Estimate:
    """Hours that a row took according to its published records, of which `seeds` are known.

    The pre-training is not included, and maps without a record are assumed to take as long as the
    one in the table, or no time without a fit.
    """

    hours: float
    device: str
    seeds: int


def trained_beside(record: dict[str, Any]) -> list[str]:
    """Return the attentions of the models that a record shows beside its teacher, one per model."""
    manifests = record["manifests"]
    named = ("softmax", "espformer", "coarse", "relaxed_sinkhorn")
    more = ["coarse"] * len(manifests.get("more_coarse", []))
    rivals = [manifest["config"]["attention"]["name"] for manifest in rivals_of(record)]
    return [*(name for name in named if manifests.get(name)), *more, *rivals]


def rivals_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [*record["manifests"].get("rivals", {}).values()]


def not_recorded(row: Row, records: list[dict[str, Any]]) -> list[str]:
    """Return the baselines of a row that none of its records has, by attention and number."""
    made = [trained_beside(record) for record in records if makes(row, record)]
    names = [baseline.split()[0] for baseline in row.baselines]
    most = {name: max((found.count(name) for found in made), default=0) for name in names}
    return [
        baseline
        for place, baseline in enumerate(row.baselines)
        if names[:place].count(names[place]) >= most[names[place]]
    ]


def estimate(row: Row, records: list[dict[str, Any]]) -> Estimate | None:
    """Estimate the time of a row from the manifests of its records; None without records."""
    made = [record for record in records if makes(row, record)]
    made.sort(key=lambda record: str(record["manifests"]["evaluate"]["ended"]))
    runs = {record["run"]: record for record in made}  # the newest of each
    if not runs:
        return None
    seconds, fits_made = 0.0, sum("calibration=coarse" not in each for each in row.calibrations)
    for record in runs.values():
        manifests = record["manifests"]
        names = {baseline.split()[0] for baseline in row.baselines}
        trained = ["train", *sorted(name for name in names if manifests.get(name))]
        seconds += sum(manifests[name]["wall_seconds"] for name in trained)
        more = (manifests.get(f"more_{name}", []) for name in names)
        seconds += sum(run["wall_seconds"] for runs in more for run in runs)
        seconds += sum(rival["wall_seconds"] for rival in rivals_of(record))
        seconds += manifests["distill"]["wall_seconds"] * fits_made
        seconds += manifests["evaluate"]["wall_seconds"] * len(row.evaluations)
    return Estimate(seconds / 3600, made[0]["device"], len(runs))
