"""Errors of several ranks: what all of them raise is printed by rank 0, what one raises by it."""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from asap_exp.core.console import quiet
from asap_exp.core.interruption import Interrupted
from asap_exp.core.ranks import Ranks

ARRIVE = 60.0
"""Seconds in which the other ranks must arrive to hear how rank 0 has ended."""

PATIENCE = 4.0
"""Seconds within which ranks that raise the same error do so."""

PRINTS = 1.0
"""Seconds in which rank 0 prints; what started the ranks may end it once another one has ended."""

_compared: BaseException | None = None
"""Error that the ranks have compared already."""


class Board:
    """Board that every rank can read, and on which each writes the error that it has raised."""

    def __init__(self, store: dist.Store, ranks: Ranks, port: int) -> None:
        self.store, self.ranks, self.port = store, ranks, port
        self._write("there")

    def all_ready(self) -> bool:
        """Write that this rank is ready to work, and return True once all are."""
        self._write("ready")
        return self.store.check([f"ready/{rank}" for rank in range(self.ranks.world)])

    def failed(self) -> int | None:
        """Return the first rank that has written an error, if any."""
        ranks = range(self.ranks.world)
        return next((rank for rank in ranks if self.store.check([f"error/{rank}"])), None)

    def write(self, error: BaseException) -> None:
        """Write an error of this rank."""
        self._write("error", essence(error))

    def hear(self) -> None:
        """Write that this rank knows of rank 0's error, or need not."""
        self._write("heard")

    def said_by_first(self, error: BaseException) -> bool:
        """Return True, on another rank than 0, if rank 0 raises the same, and so prints it.

        Rank 0 waits until the others know.
        """
        global _compared
        _compared = error
        self.write(error)
        with suppress(dist.DistError):
            if self.ranks.rank == 0:
                others = range(1, self.ranks.world)
                if self._wait([f"there/{rank}" for rank in others], ARRIVE):
                    self._wait([f"heard/{rank}" for rank in others], PATIENCE)
                return False
            same = self._wait(["error/0"], PATIENCE) and self._first_said(error)
            self.hear()
            if same:
                with suppress(Interrupted):
                    time.sleep(PRINTS)
                return True
        quiet(f"rank {self.ranks.rank}")
        return False

    def _first_said(self, error: BaseException) -> bool:
        return self.store.get("error/0").decode() == essence(error)

    def _write(self, what: str, text: str = "") -> None:
        with suppress(dist.DistError):
            self.store.set(f"{what}/{self.ranks.rank}", text)

    def _wait(self, keys: Iterable[str], seconds: float) -> bool:
        """Return True once all keys are written; False if they are not in time."""
        keys, until = list(keys), time.monotonic() + seconds
        while not self.store.check(keys):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True


def essence(error: BaseException) -> str:
    """Return what an error of all ranks has in common: its kind, and its words without numbers."""
    return f"{type(error).__name__}: {re.sub('[0-9]+', '#', str(error))}"


def board_at(address: str, port: int, ranks: Ranks, timeout: timedelta, *, opens: bool) -> Board:
    """Return the board of all ranks, which one of them opens; 0 as the port is any that is free."""
    store = dist.TCPStore(address, port, is_master=opens, wait_for_workers=False, timeout=timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Board(dist.PrefixStore(f"asap_exp/{attempt}", store), ranks, store.port)


def board_of(environment: ClusterEnvironment, ranks: Ranks, timeout: timedelta) -> Board:
    """Return the board of ranks that torchrun, SLURM or a user has started."""
    torchrun = isinstance(environment, TorchElasticEnvironment)  # which has opened a store
    opens = ranks.rank == 0 and not torchrun
    return board_at(environment.main_address, environment.main_port, ranks, timeout, opens=opens)


def said_by_first(error: BaseException) -> bool:
    """Return `Board.said_by_first` of an error raised before a Team of these ranks works.

    One that the Team has compared is not compared again.
    """
    if error is _compared:
        return False
    environment: ClusterEnvironment
    try:
        torchrun = TorchElasticEnvironment.detect()
        environment = TorchElasticEnvironment() if torchrun else SLURMEnvironment()
        ranks = Ranks(environment.global_rank(), environment.world_size())
        board = board_of(environment, ranks, timedelta(seconds=PATIENCE))
    except RuntimeError:  # SLURM's variables are not whole, or rank 0 is not there
        return False
    return board.said_by_first(error)
