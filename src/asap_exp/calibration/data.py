"""Input of a calibration: the frozen teacher, batches to fit on and to check on, settings."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from asap_exp.calibration.capture import Forward, on_inputs
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.core.console import Progress


class Batches(Protocol):
    """A loader of known length that gives the same batches whenever it is iterated over."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class CalibrationData:
    """The frozen teacher, the data to fit on and to check on, and the settings."""

    net: nn.Module
    fit: Batches
    held_out: Batches
    config: CalibrationConfig
    precision: str
    forward: Forward = on_inputs
    progress: Progress = field(default_factory=lambda: Progress(shown=True))

    def batch_name(self, batches: Batches, index: int) -> str:
        """Name a batch of `fit` or `held_out`, counted through both, for a message."""
        index += len(self.fit) if batches is self.held_out else 0
        total = len(self.fit) + len(self.held_out)
        return f"calibration batch {index + 1} of {total} (index {index})"
