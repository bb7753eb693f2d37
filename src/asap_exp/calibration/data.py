"""Input of a calibration: the frozen teacher, batches to fit on and to check on, settings."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import nn

from asap_exp.calibration.capture import Forward, on_inputs
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.core.agreement import alone
from asap_exp.core.console import Progress


class Batches(Protocol):
    """A loader of known length that gives the same batches whenever it is iterated over."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


class SharedBatches(Batches, Protocol):
    """Batches of which every rank gets its part of the samples."""

    def in_turns(self) -> Iterable[tuple[int, Any]]:
        """Yield whole batches with their numbers, each on one rank alone."""

    def weight(self, number: int) -> float:
        """Return 0 for a batch of fewer samples than ranks, of which this rank has none.

        It gets the first one as a stand-in, since every rank takes every step.
        """


def in_turns(batches: Batches) -> Iterable[tuple[int, Any]]:
    """Yield whole batches with their numbers: every one on some rank, alone all of them.

    What a model makes of a sample depends, in its last bits, on the size of the batch: of whole
    batches it is what a single process would find.
    """
    return enumerate(batches) if alone() else cast(SharedBatches, batches).in_turns()


def is_stand_in(batches: Iterable[Any], number: int) -> bool:
    """Return True if what this rank gets of a batch belongs to another rank and must not count."""
    return not alone() and cast(SharedBatches, batches).weight(number) == 0


@dataclass(frozen=True)
class CalibrationData:
    """The frozen teacher, the data to fit on and to check on, and the settings.

    With several ranks the batches are `SharedBatches`, and each rank has the same model and
    settings: what it finds is then of all samples.
    """

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
