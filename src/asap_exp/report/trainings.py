"""Trainings without an evaluation of their own: their records, and groups of those compared."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from asap_exp.core.config import PathsConfig
from asap_exp.core.files import read_json
from asap_exp.core.objectives import CLASSIFICATION, Objective
from asap_exp.core.records.columns import Average, Column
from asap_exp.core.records.row import COLUMN
from asap_exp.core.records.store import RecordKind, gathered
from asap_exp.core.records.training import TrainingRecord
from asap_exp.core.runs import (
    HARDWARE_KEYS,
    LOCATION_KEYS,
    Run,
    drop_keys,
    flatten,
    short_hash,
    sound_runs_with_manifests,
)
from asap_exp.core.sealed import sealed
from asap_exp.report.records import run_of_task

FORMAT = 1
TRAININGS = RecordKind(
    TrainingRecord,
    "record of a training",
    "python -m asap_exp.train",
    FORMAT,
    lambda value: {"train": value.get("manifest")},
)
load_records = TRAININGS.load

FOLDER = "train"
"""Folder of these records, below `records/`."""

SAME = (*LOCATION_KEYS, *HARDWARE_KEYS, "seed")
"""Settings that are no part of a recipe."""


def gather(paths: PathsConfig, task: str | None, run: str | None, folder: Path) -> list[Path]:
    """Write the record of every finished training into `folder`; return the files."""
    if run is None:
        found = [each for each, end in sound_runs_with_manifests(paths, task) if end is not None]
    else:
        found = [each for each in [run_of_task(paths, run, task)] if each.finished]
    sources = {each.path / "manifest.json": each for each in found}

    def named(file: Path) -> tuple[str, Any]:
        value = record_of(sources[file])
        TRAININGS.from_json(value, file)
        return f"{sources[file].label}.json", value

    return gathered(sources, named, folder)


def record_of(run: Run) -> dict[str, Any]:
    """Return the record of a finished training as JSON."""
    return sealed(
        {
            "format": FORMAT,
            "run": run.name,
            "curves": read_json(run.curves),
            "manifest": read_json(run.path / "manifest.json"),
        }
    )


@dataclass(frozen=True)
class Trained:
    """Trainings that differ only in their seeds; `settings` tell them from others beside them."""

    records: list[TrainingRecord]
    settings: str = ""

    @property
    def first(self) -> TrainingRecord:
        return self.records[0]

    @property
    def attention(self) -> str:
        return str(self.first.config["attention"]["name"])

    @property
    def label(self) -> str:
        return ", ".join(filter(None, [self.attention, self.settings]))

    def mean(self, number: Callable[[TrainingRecord], float | None]) -> Average | None:
        """Return the mean of a number over the seeds that have it."""
        found = [value for value in map(number, self.records) if value is not None]
        if not found:
            return None
        return Average(fmean(found), stdev(found) if len(found) > 1 else None)

    @property
    def quality(self) -> Average | None:
        """Best validation accuracy or perplexity."""
        return self.mean(lambda record: record.quality)


@dataclass(frozen=True)
class Comparison:
    """Trainings on one data set with one objective, the best first."""

    title: str
    slug: str
    trained: list[Trained]

    @property
    def objective(self) -> Objective:
        return self.trained[0].first.objective

    @property
    def column(self) -> Column:
        """Column of the quality that judges them, on validation data."""
        return COLUMN[self.objective.metric]


def compared(records: Iterable[TrainingRecord], evaluated: Collection[str]) -> list[Comparison]:
    """Return the trainings that are not among the `evaluated` runs, by data set and objective."""
    kinds: dict[tuple[str, str], list[TrainingRecord]] = {}
    for record in records:
        if record.run not in evaluated:
            key = str(record.config["data"]["name"]), record.objective.name
            kinds.setdefault(key, []).append(record)
    return [comparison(*key, kinds[key]) for key in sorted(kinds)]


def comparison(data: str, objective: str, records: list[TrainingRecord]) -> Comparison:
    """Compare trainings on one data set, of which those of one recipe are seeds."""
    by_recipe: dict[tuple[str, str], list[TrainingRecord]] = {}
    for record in records:
        key = record.recipe, short_hash(record.trained_on.train_sha256)
        by_recipe.setdefault(key, []).append(record)
    groups = [sorted(each, key=lambda record: record.manifest.seed) for each in by_recipe.values()]
    varied = varying([each[0] for each in groups])
    found = [Trained(each, differing(each[0], varied)) for each in groups]
    lower = records[0].objective.lower_is_better

    def rank(trained: Trained) -> tuple[bool, float, str]:
        mean = None if trained.quality is None else trained.quality.mean
        return mean is None, (mean or 0.0) * (1 if lower else -1), trained.label

    parts = [data, records[0].objective.title, "subset" * records[0].trained_on.is_subset]
    slug = f"trainings-{data}" + ("" if objective == CLASSIFICATION.name else f"-{objective}")
    return Comparison(", ".join(filter(None, parts)), slug, sorted(found, key=rank))


def settings_of(record: TrainingRecord) -> dict[str, Any]:
    """Return the settings that decide what is computed, by key."""
    settings = flatten(drop_keys(record.config, SAME))
    return settings | {"data content": short_hash(record.trained_on.train_sha256)}


def varying(records: list[TrainingRecord]) -> set[str]:
    """Return the settings in which some of these differ.

    Options of the attention count where the attention is the same: others have other options.
    """
    found: set[str] = set()
    for a in records:
        for b in records:
            left, right = settings_of(a), settings_of(b)
            same = left["attention.name"] == right["attention.name"]
            found |= {
                key
                for key in left.keys() | right.keys()
                if left.get(key) != right.get(key) and (same or not key.startswith("attention."))
            }
    return found - {"attention.name"}


def differing(record: TrainingRecord, varied: Collection[str]) -> str:
    """Return these settings of a training in words."""
    settings = settings_of(record)
    return ", ".join(f"{key}={settings[key]}" for key in sorted(varied) if key in settings)
