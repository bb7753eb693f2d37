"""Types of an evaluation record, and the consistency checks within it."""

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from asap_exp.core.manifest import LaterManifest, TrainManifest
from asap_exp.core.objectives import OBJECTIVES, Objective
from asap_exp.core.records.behaviour import Behaviour
from asap_exp.core.records.columns import ObjectiveName
from asap_exp.core.records.fidelity import FidelityRow, is_about
from asap_exp.core.records.identity import RunIdentity
from asap_exp.core.records.right import RightSamples
from asap_exp.core.records.row import Row
from asap_exp.core.records.settings import EvaluateSettings, TestData, TrainingData, TrainSettings
from asap_exp.core.typed import (
    STRICT,
    Count,
    Measure,
    Name,
    RunName,
    Size,
    checked,
)

OTHER_MAP = "map_"
"""Prefix of the keys of further compiled maps of the same teacher."""
ROUNDING = 1e-3
"""Samples by which a stored accuracy may differ from the samples that are right."""


@dataclass(config=STRICT, kw_only=True)
class Test:
    """Number of test samples used, and size of the whole split."""

    rows: Size
    of: Size

    @property
    def whole(self) -> bool:
        return self.rows == self.of

    @model_validator(mode="after")
    def _is_part(self) -> "Test":
        if self.rows > self.of:
            raise ValueError(f"rows={self.rows} are more than of={self.of}")
        return self


@dataclass(config=STRICT, kw_only=True)
class Corruption:
    name: str
    severity: Size


@dataclass(config=STRICT, kw_only=True)
class Timing:
    """Settings under which latencies were measured."""

    batch_size: Size
    rounds: Size
    compiled: bool
    cuda_graph: bool
    backend: str | None = None


@dataclass(config=STRICT, kw_only=True)
class MapPoint:
    """Point that a row measures; maps that differ only in their seed share one."""

    key: str
    label: str


Plan = list[list[Measure]]


@dataclass(config=STRICT, kw_only=True)
class Plans:
    teacher: Plan
    asap: Plan
    softmax: Plan

    @model_validator(mode="after")
    def _of_one_shape(self) -> "Plans":
        shapes = {(len(plan), *map(len, plan)) for plan in (self.teacher, self.asap, self.softmax)}
        rows, *columns = next(iter(shapes))
        if len(shapes) > 1 or not rows or len(set(columns)) > 1 or not columns[0]:
            raise ValueError("the three plans must be tables of the same shape")
        return self


@dataclass(config=STRICT, kw_only=True)
class ExamplePlan:
    """Plan of one test sample in one head; for long sequences, means over blocks of tokens."""

    layer: str
    head: Count
    block: Size = 1
    plans: Plans


@dataclass(config=STRICT, kw_only=True)
class Manifests:
    train: TrainManifest
    distill: LaterManifest
    evaluate: LaterManifest
    softmax: TrainManifest | None = None
    espformer: TrainManifest | None = None
    coarse: TrainManifest | None = None
    more_coarse: list[TrainManifest] = Field(default_factory=list)
    relaxed_sinkhorn: TrainManifest | None = None
    rivals: dict[str, TrainManifest] = Field(default_factory=dict)


Curve = list[dict[str, float]]
"""Training curve: a row per epoch, with its number and the values logged in it."""


@dataclass(config=STRICT, kw_only=True)
class EvaluationRecord:
    """Record of one evaluation. Fields with a default are missing from older records."""

    format: Literal[1, 2]
    run: RunName
    task: Name
    data: Name
    seed: Count
    qk_norm: bool
    artifact: RunIdentity
    maps: dict[str, MapPoint] = Field(default_factory=dict)
    softmax_run: RunName | None
    espformer_run: RunName | None = None
    coarse_run: RunName | None = None
    more_coarse_runs: list[RunName] = Field(default_factory=list)
    """Coarse runs with other options than that one."""
    relaxed_sinkhorn_run: RunName | None = None
    rival_runs: dict[str, RunName] = Field(default_factory=dict)
    """Runs of further attentions trained alike, by the key of their row."""
    samples: str = "images"
    objective: ObjectiveName = "classification"
    test: Test
    corruption: Corruption | None = None
    device: str
    precision: str
    fidelity_samples: Size
    num_layers: Size
    latency: Timing
    rows: list[Row] = Field(min_length=2)
    drift: dict[str, Measure] | None = None
    fidelity: list[FidelityRow]
    curves: Curve
    plans: ExamplePlan
    right: RightSamples | None = None
    """Test samples that each row has right; None where targets are tokens."""
    behaviour: Behaviour | None = None
    """What the plans of whole models do; None if it was not measured."""
    manifests: Manifests
    sha256: str | None = None

    @cached_property
    def training(self) -> TrainSettings:
        """Configuration that the teacher was trained with."""
        return checked(TrainSettings, self.manifests.train.config, "manifests.train.config")

    @cached_property
    def trained_on(self) -> TrainingData:
        return checked(TrainingData, self.manifests.train.data, "manifests.train.data")

    @cached_property
    def relaxation(self) -> float:
        """Relaxation of the rows that are relaxed truncations."""
        config = self.manifests.evaluate.config
        return checked(EvaluateSettings, config, "manifests.evaluate.config").relaxation

    @cached_property
    def tested_on(self) -> TestData:
        return checked(TestData, self.manifests.evaluate.data, "manifests.evaluate.data")

    @property
    def trained_for(self) -> Objective:
        """Objective of the teacher; its metric judges every method."""
        return OBJECTIVES[self.objective]

    @property
    def is_subset(self) -> bool:
        """True if the training or test split is a subset of the one of that name."""
        return self.trained_on.is_subset or not self.test.whole

    @property
    def data_title(self) -> str:
        """Name of the data set; a subset is called one."""
        return f"{self.data} (subset)" if self.is_subset else self.data

    @property
    def all_layers(self) -> bool:
        """True if every layer was compiled."""
        return len(self.artifact.layers) == self.num_layers

    @property
    def train_seconds(self) -> float:
        seconds = self.manifests.train.train_seconds
        assert seconds is not None, "checked when the record was made"
        return seconds

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "EvaluationRecord":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        yield from self._disagreements()
        train, evaluated = self.manifests.train, self.manifests.evaluate
        if train.train_seconds is None:
            yield "manifests.train.train_seconds is missing"
        if not ("torch" in train.versions and "torch" in evaluated.versions):
            yield "manifests.train.versions and manifests.evaluate.versions must name torch"
        keys = [row.key for row in self.rows]
        teachers = [row.key for row in self.rows if row.group == "teacher"]
        if teachers != keys[:1] or "asap" not in keys:
            yield "rows must begin with the teacher, the only one, and have the map's row, asap"
        if len(set(keys)) < len(keys):
            yield "rows names a method twice"
        if not set(self.maps) <= set(keys):
            yield "maps names a method that has no row"
        artifact = self.artifact
        if len(artifact.layers) > self.num_layers:
            yield f"num_layers={self.num_layers} is less than the layers of artifact"
        measured = artifact.layers if artifact.calibration.fitted else []
        if not is_about(self.fidelity, measured, artifact.heads):
            yield "fidelity is not about the layers and heads of artifact"
        if self.plans.layer not in artifact.layers or self.plans.head >= artifact.heads:
            yield "plans is of a layer or head that artifact does not have"
        if max(self.fidelity_samples, self.latency.batch_size) > self.test.rows:
            yield "fidelity_samples and latency.batch_size must be at most test.rows"
        epochs = [row.get("epoch", -1) for row in self.curves]
        if epochs != sorted({int(epoch) for epoch in epochs if epoch >= 0}):
            yield "curves must have a row an epoch, in their order"
        yield from self._wrong_samples()
        if self.behaviour is not None:
            yield from self.behaviour.problems(keys, self.num_layers, self.test.rows)
        if any(x < 0 for row in self.curves for name, x in row.items() if "loss" in name):
            yield "curves must have no loss below 0"

    def _wrong_samples(self) -> Iterator[str]:
        """Yield where the samples that are right are not those of the rows."""
        if self.right is None:
            return
        if self.right.samples != self.test.rows:
            yield f"right is of {self.right.samples} samples and test.rows={self.test.rows}"
        if list(self.right.bits) != [row.key for row in self.rows]:
            yield "right.bits is not about the rows, in their order"
            return
        for row in self.rows:
            share = float(self.right.right(row.key).mean())
            if abs(share - row.accuracy) * self.test.rows > ROUNDING:
                yield f"right.bits of {row.key} gives the accuracy {share}, not {row.accuracy}"

    def _disagreements(self) -> Iterator[str]:
        """Yield each entry that is stored in two places of the record but differs between them."""
        train, evaluated = self.manifests.train, self.manifests.evaluate
        settings, tested = self.training, self.tested_on
        _ = self.trained_on, self.relaxation  # raise errors here, not when they are first used
        for key, mine, other, theirs in (
            ("seed", self.seed, "manifests.train.seed", train.seed),
            ("seed", self.seed, "manifests.evaluate.seed", evaluated.seed),
            ("task", self.task, "artifact.task", self.artifact.task),
            ("task", self.task, "manifests.train.config.task.name", settings.task.name),
            ("data", self.data, "manifests.train.config.data.name", settings.data.name),
            ("qk_norm", self.qk_norm, "manifests.train.config", settings.model.qk_norm),
            ("precision", self.precision, "manifests.train.config", settings.trainer.precision),
            (
                "artifact.teacher_sha256",
                self.artifact.teacher_sha256,
                "manifests.train.teacher_sha256",
                train.teacher_sha256,
            ),
            ("test.rows", self.test.rows, "manifests.evaluate.data", tested.test_rows),
            ("test.of", self.test.of, "manifests.evaluate.data", tested.test_rows_in_all),
            ("softmax_run", self.softmax_run is None, "manifests", self.manifests.softmax is None),
            (
                "espformer_run",
                self.espformer_run is None,
                "manifests",
                self.manifests.espformer is None,
            ),
            ("coarse_run", self.coarse_run is None, "manifests", self.manifests.coarse is None),
            (
                "more_coarse_runs",
                len(self.more_coarse_runs),
                "manifests",
                len(self.manifests.more_coarse),
            ),
            (
                "relaxed_sinkhorn_run",
                self.relaxed_sinkhorn_run is None,
                "manifests",
                self.manifests.relaxed_sinkhorn is None,
            ),
            ("rival_runs", [*self.rival_runs], "manifests.rivals", [*self.manifests.rivals]),
            (
                "rival_runs",
                [*self.rival_runs],
                "rows",
                [row.key for row in self.rows if row.group == "rival"],
            ),
        ):
            if mine != theirs:
                yield f"{key} is not what {other} says ({mine}, {theirs})"
