"""Rank of this process among those that work on one model together, one per device."""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

Rows = TypeVar("Rows", bound=Any)
"""A tensor or an array."""


class Ranks(NamedTuple):
    """Number of this process and of all of them; each takes its part of every batch."""

    rank: int = 0
    world: int = 1

    def parts(self, size: int) -> list[slice]:
        """Return the part of each rank in a batch of `size` rows: one after another, near equal."""
        ends = [size * rank // self.world for rank in range(self.world + 1)]
        return [slice(*pair) for pair in pairwise(ends)]

    def part(self, rows: Rows) -> Rows:
        """Return this rank's part of the rows of a batch.

        One that has none, where there are fewer rows than ranks, gets the first row, which must not
        count: every rank makes every step.
        """
        if self.world == 1:
            return rows
        part = self.parts(len(rows))[self.rank]
        return rows[part] if part.start < part.stop else rows[:1]

    def weight(self, targets: Sequence[int]) -> float:
        """Return the weight of this rank's mean loss, if each rank has so many targets.

        The mean over the ranks is then that over all targets. It is 0 for a rank with none.
        """
        return self.world * targets[self.rank] / sum(targets)


ALONE = Ranks()


class Devices(NamedTuple):
    """Devices that a stage works on, as configured: `devices` on each of `nodes` machines."""

    accelerator: str
    devices: int
    nodes: int
    keys: str = ""
    """What stands before the keys `accelerator`, `devices` and `num_nodes`."""

    @property
    def world(self) -> int:
        """Number of devices in all."""
        return self.devices * self.nodes


PARENT = "ASAP_EXP_PARENT"
"""Environment variable with the process that started this one as a rank."""


def said_by_first(error: BaseException) -> bool:
    """Return True if this is one of several processes, all of which raise this, and not the first.

    The first one prints it. torchrun or srun has started them.
    """
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    slurm = "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"
    if not (torchrun or slurm):
        return False
    from asap_exp.core import once  # it imports PyTorch, which takes seconds

    return once.said_by_first(error)
