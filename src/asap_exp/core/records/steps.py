"""Types of a record of training steps: `benchmark mode=step`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from asap_exp.core.manifest import BenchmarkManifest
from asap_exp.core.typed import STRICT, Measure, Name, Positive, Share, Size

Count = Annotated[int, Field(ge=0)]


@dataclass(config=STRICT, kw_only=True)
class Step:
    """Pace of a training with one attention; times are means over `steps`."""

    attention: str
    steps: Size
    step_ms: Positive
    median_ms: Positive | None = None
    """Median of the steps; older records lack it."""
    samples_per_second: Positive
    tokens_per_second: Positive
    """Tokens of the inputs, those of padding included."""
    gpu_ms: Positive | None
    """Milliseconds of a step in which the GPU ran a kernel; None on a CPU."""
    gpu_busy: Share | None
    kernels: Positive | None
    """Kernels and copies per step."""
    peak_memory_mib: Measure | None
    model_tflops: Positive
    """Teraflops of a step's matrix products, those of softmax attention in any case."""
    utilisation: Share
    """Share of the rate of a large matrix product, measured in the same run."""
    graphs: Count
    """CUDA graphs that steps were recorded in; 0 where they run kernel by kernel."""
    warm_up_steps: Count
    warm_up_seconds: Measure
    """Time until the training was warm: compilation, recording and the steps themselves."""
    compile_seconds: Measure
    """The part of it in steps that were compiled or recorded."""
    measured: str | None = None
    """When the row was ready, in UTC; older records lack it."""


@dataclass(config=STRICT, kw_only=True)
class StepRecord:
    format: Literal[1]
    name: Name
    device: str
    task: str
    samples: str
    precision: str
    batch_size: Size
    parameters: Size
    product_tflops: Positive
    rows: list[Step] = Field(min_length=1)
    manifest: BenchmarkManifest
    sha256: str | None = None
