"""Runs, maps and evaluations of a sweep (`scripts/sweep.py`), found on disk, and its table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from asap_exp.core.composing import compose
from asap_exp.core.config import (
    EvaluateConfig,
    OwnImageTrainRequest,
    OwnTextTrainRequest,
    TrainConfig,
)
from asap_exp.core.console import counted, duration, plain_table, show
from asap_exp.core.files import read_json
from asap_exp.core.objectives import OBJECTIVES
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import Row
from asap_exp.core.runs import (
    Run,
    all_runs,
    drop_keys,
    finished_artifacts,
    flatten,
    identity,
    public_config,
    short_hash,
    stage_finished,
)
from asap_exp.core.sealed import SEAL
from asap_exp.data.own.find import found as looked_up
from asap_exp.data.run_data import run_data
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import artifact_key, can_compile, with_holdout, with_timing
from asap_exp.report.records import METRICS, read_record
from asap_exp.train.trainer import settled

NOT_COMPARED = ("logger", "accelerator", "task", "data")
"""Keys of an evaluation that do not change what it measures."""


@dataclass(frozen=True)
class Planned:
    """One training of a sweep: its settings as typed, its configuration, and what it asks for.

    The configuration has the precision of this device where `precision` is "auto".
    """

    settings: dict[str, str]
    config: TrainConfig
    precision: str = "auto"

    @property
    def compiles(self) -> bool:
        """True if its attention has a dual, which a map is fitted to."""
        return can_compile(self.config)

    @property
    def key(self) -> tuple[Any, int]:
        """Key that its run has too, whatever device it was trained on."""
        return without_precision(self.config), self.config.seed

    def takes(self, run: Run) -> bool:
        """Return True unless another precision is asked for."""
        return self.precision in ("auto", run.config.trainer.precision)


def without_precision(config: TrainConfig) -> dict[str, Any]:
    """Return what is computed, but for the precision, which a device may choose by itself."""
    return drop_keys(identity(config), ("trainer.precision",))


def plan(words: list[str]) -> Planned:
    """Compose one training; UserError if it is not sound."""
    config = compose("train", words, TrainConfig)
    if isinstance(config, OwnImageTrainRequest | OwnTextTrainRequest):
        config = looked_up(config)
    precision = config.trainer.precision
    # It may be trained elsewhere: a login node has no GPU.
    anywhere = replace(config.trainer, accelerator="auto", precision="auto")
    config, _ = settled(replace(config, trainer=anywhere))
    pairs = (word.lstrip("+").partition("=") for word in words)
    return Planned({key: value for key, _, value in pairs}, config, precision)


def runs_of(planned: Sequence[Planned]) -> list[Run | None]:
    """Return the finished run of each training; None where there is none."""
    tasks = {each.config.task.name for each in planned}
    paths = planned[0].config.paths
    there = [run for task in tasks for run in all_runs(paths, task) if run.finished]
    known = [((without_precision(run.config), run.config.seed), run) for run in there]
    return [
        next((run for key, run in known if key == each.key and each.takes(run)), None)
        for each in planned
    ]


def map_of(run: Run, asked: DistillConfig) -> Path | None:
    """Return the newest finished map of `run` that was made with these settings, or None."""
    if asked.calibration.fits and asked.calibration.holdout is None:
        data = run_data(run, asked.data, asked.fitted.batch_size, torch.device("cpu"))
        asked = with_holdout(asked, run, data)
    # Where a budget leaves its timing to the device, the map may be of either kind.
    kinds = ("cpu", "cuda") if asked.budget.latency.cuda_graph is None else ("cuda",)
    timed = [with_timing(asked, torch.device(kind)) for kind in kinds]
    for _, folder in reversed(finished_artifacts(run)):
        layers = read_json(folder / "manifest.json")["config"]["layers"]
        if folder.name in [short_hash(artifact_key(each, layers)) for each in timed]:
            return folder
    return None


def evaluated(
    run: Run, folder: Path, settings: EvaluateConfig, runs: Sequence[Run]
) -> EvaluationRecord | None:
    """Return the evaluation of a map with these settings, beside the baselines among `runs`."""
    wanted = flatten(drop_keys(public_config(settings), (*NOT_COMPARED, "latency.cuda_graph")))
    graphs = settings.latency.cuda_graph
    artifact = drop_keys(read_json(folder / "asap.json"), (SEAL,))
    expected = {
        other.name
        for other in runs
        if f"{other.config.attention['name']}_run" in EvaluationRecord.__dataclass_fields__
        and other.config.seed == run.config.seed
        and other.manifest.recipe_hash == run.manifest.recipe_hash
    }
    for place in sorted(run.path.glob("evaluate/*")):
        if not stage_finished(place):
            continue
        made = flatten(read_json(place / "manifest.json")["config"])
        if any(made.get(key, value) != value for key, value in wanted.items()):
            continue  # a key that it lacks is younger
        record = read_record(place / METRICS)
        if graphs not in (None, record.latency.cuda_graph):
            continue  # null takes what the device gave
        complete = expected <= {name for _, name in baselines_of(record)}
        if complete and read_json(place / METRICS)["artifact"] == artifact:
            return record
    return None


def baselines_of(record: EvaluationRecord) -> list[tuple[Row, str]]:
    """Return the row of each run that an evaluation shows beside its own, and the run's name."""
    more: dict[str, list[str]] = {"coarse": [*record.more_coarse_runs]}
    found: list[tuple[Row, str]] = []
    for row in record.rows:
        if row.key.endswith("_trained"):
            # Rows of one attention come in the order of their runs.
            first = getattr(record, f"{row.group}_run")
            names = more.setdefault(row.group, [])
            known = any(name == first for _, name in found)
            found.append((row, names.pop(0) if known else first))
    return found


# The table


@dataclass(frozen=True)
class Found:
    """What a training of the sweep has come to: its run, and the evaluation of its map."""

    run: Run | None
    record: EvaluationRecord | None

    def measured(self, row: str, column: str) -> float | None:
        """Return a number of the evaluation; None if it was not measured."""
        rows = () if self.record is None else self.record.rows
        return next((getattr(each, column) for each in rows if each.key == row), None)


def print_results(
    planned: Sequence[Planned], configs: tuple[DistillConfig, EvaluateConfig]
) -> None:
    """Print a row for all seeds of a combination: the mean and the standard deviation."""
    all_found = found_of(planned, configs)
    tests = tests_of_baselines(all_found)
    groups: dict[tuple[str, ...], list[int]] = {}
    keys = varied(planned)
    for place, each in enumerate(planned):
        groups.setdefault(tuple(each.settings.get(key, "") for key in keys), []).append(place)
    objective = planned[0].config.objective
    metric, scale = objective.metric, 1 if objective.is_perplexity else 100
    of = counted(len(planned), "run")
    table = plain_table(f"Sweep of {of}: mean ± standard deviation over the runs")
    for title in (*keys, "runs", *titles(metric, percent=scale == 100)):
        table.add_column(escape(title), justify="left" if title in keys else "right")
    for values, places in groups.items():
        mine = [all_found[place] for place in places]
        runs = [each.run for each in mine if each.run is not None]
        own = [each.measured("teacher", metric) for each in mine]
        test = [*own, *(tests.get(run.name) for run in runs)]
        table.add_row(
            *map(escape, values),
            f"{len(runs)} of {len(mine)}",
            spread([getattr(run.manifest, f"best_val_{metric}") for run in runs], scale),
            spread(test, scale),
            spread([each.measured("asap", metric) for each in mine], scale),
            spread([each.measured("asap", "agreement") for each in mine], 100),
            spread([each.measured("asap", "model_speedup") for each in mine], 1),
            mean_time([run.manifest.train_seconds for run in runs]),
        )
    show(table)


def titles(metric: str, *, percent: bool) -> tuple[str, ...]:
    unit = " %" if percent else ""
    return (
        f"validation {metric}{unit}",
        f"test{unit}",
        f"compiled, test{unit}",
        "agreement %",
        "speed-up",
        "training",
    )


def found_of(
    planned: Sequence[Planned], configs: tuple[DistillConfig, EvaluateConfig]
) -> list[Found]:
    """Return what is there of each training, in their order."""
    asked, settings = configs
    runs = runs_of(planned)
    there = [run for run in runs if run is not None]
    found = []
    for run in runs:
        folder = map_of(run, asked) if run is not None and can_compile(run.config) else None
        record = None
        if run is not None and folder is not None:
            record = evaluated(run, folder, settings, there)
        found.append(Found(run, record))
    return found


def tests_of_baselines(found: Sequence[Found]) -> dict[str, float]:
    """Return the test metric of the runs that evaluations show beside their own, by name."""
    tests: dict[str, float] = {}
    for record in (each.record for each in found if each.record is not None):
        metric = OBJECTIVES[record.objective].metric
        tests |= {name: getattr(row, metric) for row, name in baselines_of(record)}
    return tests


def varied(planned: Sequence[Planned]) -> list[str]:
    """Return the keys but the seed in which trainings differ; the attention if there is none."""
    keys = list(dict.fromkeys(key for each in planned for key in each.settings))
    differ = [key for key in keys if len({each.settings.get(key) for each in planned}) > 1]
    return [key for key in differ if key != "seed"] or ["attention"]


def spread(values: Sequence[float | None], scale: float) -> str:
    """Return mean and deviation; of one number that alone, and nothing if none was measured."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2f}"


def mean_time(seconds: Sequence[float | None]) -> str:
    known = [each for each in seconds if each is not None]
    return duration(statistics.fmean(known)) if known else ""
