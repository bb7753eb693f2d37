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
    SEVERAL_DEVICES,
    LatencyConfig,
    LoggerConfig,
    MovedData,
    PathsConfig,
    TaskConfig,
)
from asap_exp.core.ranks import Devices


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
    behaviour: bool = False

    devices: Annotated[int, at_least(1)] = 1
    num_nodes: Annotated[int, at_least(1)] = 1

    otherwise = SEVERAL_DEVICES

    @property
    def together(self) -> Devices:
        """Devices that evaluate together."""
        return Devices(self.accelerator, self.devices, self.num_nodes)
