"""The configuration of the stage `benchmark`."""

from dataclasses import dataclass, field
from typing import Annotated

from asap_exp.core.config.fields import (
    PATH,
    Accelerator,
    Count,
    Distinct,
    Rounds,
    Seed,
    at_least,
    one_of,
)
from asap_exp.core.config.shared import ONE_DEVICE, MovedData, PathsConfig, TaskConfig
from asap_exp.core.errors import UserError


@dataclass
class SuiteConfig:
    """Benchmarks for one kind of device: a row per `n`, a column per method."""

    n: Annotated[list[int], Distinct(empty=False), at_least(1)]
    tokens: Count
    heads: Count
    head_dim: Count
    dtype: Annotated[str, one_of("bfloat16", "float16", "float32")]
    rounds: Rounds
    methods: Annotated[list[str], Distinct(empty=False)]

    def check_rows(self, name: str) -> None:
        """Raise UserError unless every row has the same work; `name` is the key of the suite."""
        for n in self.n:
            if self.tokens % (self.heads * n):
                raise UserError(
                    f"{name}.tokens={self.tokens} must be a multiple of {name}.heads x n = "
                    f"{self.heads} x {n}: batch x heads x tokens is the same in every row"
                )


@dataclass
class StepConfig:
    """Trainings that `mode=step` times."""

    attentions: Annotated[list[str], Distinct(empty=False)]
    warm_up: Count
    steps: Count
    profiled: Count
    overrides: list[str]


@dataclass
class BenchmarkConfig:
    mode: Annotated[str, one_of("forward", "train", "step")]
    inputs: Annotated[str, one_of("random", "recorded")]
    backend: Annotated[str, one_of("auto", "reference", "triton")]
    cuda_graph: bool | None
    gpu: SuiteConfig
    cpu: SuiteConfig
    step: StepConfig
    accelerator: Accelerator
    seed: Seed
    teacher: Annotated[str | None, PATH]
    data: MovedData
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)
    check: bool = False

    otherwise = ONE_DEVICE

    def __post_init__(self) -> None:
        self.gpu.check_rows("gpu")
        self.cpu.check_rows("cpu")
        if self.mode == "step":
            if self.task.name is None:
                raise UserError(
                    "mode=step trains the model of a task: give task=NAME, for example task=cifar"
                )
            if self.inputs == "recorded" or self.teacher is not None:
                raise UserError("mode=step reads no teacher: leave out inputs and teacher")
            return
        for key, value in (("teacher", self.teacher), ("task", self.task.name)):
            if value is not None and self.inputs != "recorded":
                raise UserError(f"{key}={value} is read only with inputs=recorded")
