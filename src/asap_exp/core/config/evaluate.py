"""The configuration of the stage `evaluate`."""

from dataclasses import dataclass, field
from typing import Annotated

from asap_exp.core.config.fields import (
    PATH,
    Accelerator,
    Count,
    Counts,
    Relaxation,
    at_least,
    one_of,
    within,
)
from asap_exp.core.config.shared import (
    ONE_DEVICE,
    LatencyConfig,
    LoggerConfig,
    MovedData,
    PathsConfig,
    TaskConfig,
)


@dataclass
class CorruptionConfig:
    name: Annotated[str | None, one_of(None, "noise", "blur", "contrast")]
    severity: Annotated[int, within(1, 5)]


@dataclass
class EvaluateConfig:
    teacher: Annotated[str | None, PATH]
    artifact: Annotated[str | None, PATH]
    maps: Annotated[str, one_of("one", "all")]
    batch_size: Count
    max_test_rows: Annotated[int | None, at_least(1)]
    corruption: CorruptionConfig
    truncations: Counts
    relaxed_truncations: Counts
    relaxation: Relaxation
    fidelity_samples: Count
    latency: LatencyConfig
    accelerator: Accelerator
    data: MovedData
    logger: LoggerConfig
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)
    check: bool = False

    otherwise = ONE_DEVICE
