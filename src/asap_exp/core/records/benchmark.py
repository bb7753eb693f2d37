"""Types of a benchmark record, and the consistency checks within it."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from asap_exp.core.manifest import BenchmarkManifest
from asap_exp.core.records.latency import Latency
from asap_exp.core.typed import STRICT, Measure, Name, Positive, RunName, Sha256, Share, Size

Status = Literal["timed", "scaled", "wrong", "error", "unavailable"]
TIMED = ("timed", "scaled")

Number = Annotated[int | float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Error = Annotated[float, Field(ge=0)]


@dataclass(config=STRICT, kw_only=True)
class Counted:
    """Arithmetic of a method, counted by formula."""

    flops: Number
    exponentials: Number
    bytes: Number


@dataclass(config=STRICT, kw_only=True)
class GateErrors:
    """Error of each result against float64, including gradients if there are any."""

    out: Error | None
    dq: Error | None = None
    dk: Error | None = None
    dv: Error | None = None


@dataclass(config=STRICT, kw_only=True)
class OtherOperator:
    status: Status
    message: str | None
    ms: Latency | None


@dataclass(config=STRICT, kw_only=True)
class Cell:
    """Result of one method at one length; without `ms` the message says why."""

    method: str
    label: str
    backend: str
    operator: str
    status: Status
    message: str | None
    batch_measured: Size
    scaled_from: Annotated[str, Field(pattern="^[0-9]+/[0-9]+$")] | None
    gate_errors: GateErrors | None
    first_call_seconds: Measure | None
    peak_memory_mib: Measure | None
    ms: Latency | None
    other_operators: dict[str, OtherOperator]
    ratio: Positive | None
    memory_ratio: Measure | None
    faster_than: dict[str, Positive | None]
    work: Counted | None
    floor_ms: Positive | None
    exponentials_ms: Positive | None
    routes: list[str] | None = None
    """`operator: route` for each choice of the first call; older records lack it."""

    @model_validator(mode="after")
    def _timed_or_not(self) -> "Cell":
        if (self.ms is not None) != (self.status in TIMED):
            raise ValueError(f"status={self.status} does not fit ms")
        return self


@dataclass(config=STRICT, kw_only=True)
class Length:
    """Row of a benchmark: every method on the same inputs."""

    batch: Size
    heads: Size
    n: Size
    head_dim: Size
    largest_logit: Error
    absorbed_heads: Share | None = None
    """Share of the fused teacher's heads that rescaled their plan; only in older records."""
    cells: list[Cell] = Field(min_length=1)
    measured: str | None = None
    """When the row was ready, in UTC; older records lack it."""


@dataclass(config=STRICT, kw_only=True)
class Ceilings:
    """Rates that the device reached in the same run; older records counted exponentials."""

    product_side: Size
    product_tflops: Rate
    copy_bytes: Size
    copy_gb_per_second: Rate
    exponentials_per_second: Rate | None = None
    counted_exponentials_per_second: Rate | None = None


@dataclass(config=STRICT, kw_only=True)
class Resized:
    tokens: Size
    to: list[Size]


@dataclass(config=STRICT, kw_only=True)
class Inputs:
    """Inputs: random, or recorded from a teacher, which is then named."""

    kind: Literal["random", "recorded"]
    teacher: RunName | None = None
    teacher_sha256: Sha256 | None = None
    layer: str | None = None
    split: str | None = None
    images: Size | None = None
    data: dict[str, Any] | None = None
    resized: Resized | None = None
    maps: str | None = None

    @model_validator(mode="after")
    def _names_its_teacher(self) -> "Inputs":
        named = [x is not None for x in (self.teacher, self.teacher_sha256, self.layer)]
        if not all(given == (self.kind == "recorded") for given in named):
            raise ValueError("teacher, teacher_sha256 and layer are of recorded inputs, all three")
        return self


@dataclass(config=STRICT, kw_only=True)
class BenchmarkRecord:
    format: Literal[2, 3]
    name: Name
    device: str
    mode: Literal["forward", "train"]
    inputs: Inputs
    dtype: str
    tf32: bool
    cuda_graph: bool
    triton_interpreted: bool
    rounds: Size
    tokens: Size
    ceilings: Ceilings
    rows: list[Length] = Field(min_length=1)
    left_out: list[str]
    manifest: BenchmarkManifest
    sha256: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Label of each method, in order."""
        return {cell.method: cell.label for cell in self.rows[0].cells}

    @property
    def cells(self) -> list[tuple[Length, Cell]]:
        return [(row, cell) for row in self.rows for cell in row.cells]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "BenchmarkRecord":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        for row in self.rows:
            if {cell.method: cell.label for cell in row.cells} != self.columns:
                yield f"the row of n={row.n} has other methods than the first"
            if len(row.cells) != len(self.columns):
                yield f"the row of n={row.n} names a method twice"
            if any(cell.batch_measured > row.batch for cell in row.cells):
                yield f"the row of n={row.n} has a cell with a larger batch than its own"
        lengths = [row.n for row in self.rows]
        if len(set(lengths)) < len(lengths):
            yield "rows names a length twice"
        if not {"torch", "triton"} <= self.manifest.versions.keys():
            yield "manifest.versions must name torch and triton"


TEACHER_UPDATES = 20


TEACHERS = tuple(f"sinkhorn_{kind}{TEACHER_UPDATES}" for kind in ("", "eager_", "compiled_"))
"""Teachers to compare ASAP with: on the run's backend, eager, and compiled."""


RESULTS = ("out", "dq", "dk", "dv")
