"""Team of processes of one stage, one per device: who they are, how they begin and end."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from asap_exp.core.agreement import of_first, wait_for_all
from asap_exp.core.command_line import start_again
from asap_exp.core.console import quiet
from asap_exp.core.devices import choose_device
from asap_exp.core.errors import UserError
from asap_exp.core.failures import status_of
from asap_exp.core.interruption import Interrupted
from asap_exp.core.launch import Children, end_with_parent
from asap_exp.core.membership import OwnProcesses, check_devices, environment_of
from asap_exp.core.once import ARRIVE, Board, board_at, board_of
from asap_exp.core.ranks import ALONE, Devices, Ranks
from asap_exp.core.sweep import Ledger

PREPARES = timedelta(hours=6)
"""Time in which rank 0 must have prepared the data."""

Result = TypeVar("Result")

WORK, DONE = "work", "done"
"""What rank 0 tells the others: to begin, or that all is done."""


class LostRank(UserError):
    """Raised on rank 0 when another rank has ended, for a reason that this one has printed."""


class Team:
    """Processes of one stage; rank 0 leads: it prepares the work and alone writes files."""

    def __init__(
        self, given: Devices, *, stops_together: bool = False, alone: bool = False
    ) -> None:
        """Find out the rank of this process; raise UserError if there are too few devices.

        With `stops_together`, a signal to one rank reaches the others, which save their work.
        `alone` does without the others, also where torchrun or SLURM has started them.
        """
        self.stops_together = stops_together
        self.devices, self.nodes, self.world = given.devices, given.nodes, given.world
        self.device = choose_device(given.accelerator, f"{given.keys}accelerator")
        self.environment = None if alone else environment_of(given)
        self.ranks, self.children = ALONE, Children()
        self.board: Board | None = None
        self.begun = self.works = False
        self.nothing_to_do: Any = None
        """What `orders` returns if rank 0 finds all done."""
        if self.environment is None:
            return
        check_devices(given, self.device)
        self.local = self.environment.local_rank()
        if isinstance(self.environment, OwnProcesses):
            self.environment.set_world_size(self.world)
            rank = self.environment.node_rank() * self.devices + self.local
            self.environment.set_global_rank(rank)
        self.ranks = Ranks(self.environment.global_rank(), self.world)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", self.local)
            torch.cuda.set_device(self.device)

    @property
    def leads(self) -> bool:
        """True for rank 0."""
        return self.ranks.rank == 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work together: all ranks end when one of them fails, and rank 0 as the last.

        Other ranks than 0 print nothing but errors that they alone raise. Where rank 0 raises the
        same, they exit with its status.
        """
        if self.environment is None:
            yield
            return
        if not self.leads:
            quiet(f"rank {self.ranks.rank}")
            end_with_parent()
        try:
            if not self.starts or self.nodes > 1:
                self._open_board(PREPARES)
            yield
            self._dismiss()
            if self.begun:
                wait_for_all()
        except BaseException as error:
            status = self._status_if_said(error)
            together = isinstance(error, Interrupted) and self.stops_together
            self.children.end(5 if together else 0)
            if status is not None:
                sys.exit(status)
            raise
        else:
            self.children.end()
        finally:
            if self.begun:
                dist.destroy_process_group()
            self.board = None

    @property
    def starts(self) -> bool:
        """True if this process starts the others of its machine."""
        return isinstance(self.environment, OwnProcesses) and "LOCAL_RANK" not in os.environ

    def _status_if_said(self, error: BaseException) -> int | None:
        """Return the status of another rank than 0 if rank 0 says why it ends."""
        if isinstance(error, Interrupted):  # a signal reaches those that wait as well
            return None if self.leads else error.exit_status
        if self.board is None:
            return None
        if isinstance(error, LostRank | SystemExit) or another_has_gone(error):
            if self.leads:
                self.board.write(error)
                return None
            self.board.hear()
            return None if isinstance(error, SystemExit) else 1
        return status_of(error) if self.board.said_by_first(error) else None

    def begin(self, orders: Any) -> None:
        """Have the other ranks begin, which wait in `orders`; returns when they are there.

        Raises UserError if one of them fails before.
        """
        if self.environment is None:
            return
        self._open(PREPARES)
        self.works = True
        of_first((WORK, orders))

    def orders(self) -> Any:
        """Wait for rank 0, and return what it gave to `begin`, or as `nothing_to_do`."""
        self._open(PREPARES)
        what, orders = of_first(None)
        self.works = what == WORK
        return orders

    def _dismiss(self) -> None:
        """Tell ranks that were not started here, and wait for rank 0, that there is no work."""
        if self.leads and not self.begun and not self.starts:
            self._open(timedelta(seconds=ARRIVE))
            of_first((DONE, self.nothing_to_do))

    def threads(self, given: int | None) -> int | None:
        """Return the CPU threads of this process: those `given`, or its part of all on a CPU."""
        if given is not None or self.environment is None or self.device.type == "cuda":
            return given
        return max(torch.get_num_threads() // self.devices, 1)

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Raise UserError instead of a failed exchange if that failed because a rank was lost."""
        try:
            yield
        except RuntimeError as error:
            if another_has_gone(error) and (lost := self._lost(wait=3)) is not None:
                raise LostRank(lost) from error
            raise

    def _lost(self, wait: float = 0.0) -> str | None:
        """Return a sentence about another rank that has failed, if there is one."""
        if (lost := self.children.lost(wait)) is not None:
            return lost
        failed = None if self.board is None else self.board.failed()
        if failed is None or failed == self.ranks.rank:
            return None
        return f"rank {failed} has failed, for the reason that it prints; {start_again()}"

    def _open(self, timeout: timedelta) -> None:
        """Open the group of processes, on which tensors of the host can be exchanged too.

        Every rank must arrive within the timeout.
        """
        gpu = self.device.type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        options: dict[str, Any] = {"device_id": self.device} if gpu else {}
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", self._met(timeout)),
            rank=self.ranks.rank,
            world_size=self.world,
            timeout=timeout,
            **options,
        )
        self.begun = True

    def _open_board(self, timeout: timedelta) -> Board:
        """Open the board of all ranks, which is there until the work ends."""
        if self.board is None:
            assert self.environment is not None
            if self.starts and self.nodes == 1:
                self.board = board_at("127.0.0.1", 0, self.ranks, timeout, opens=True)
            else:
                self.board = board_of(self.environment, self.ranks, timeout)
        return self.board

    def _met(self, timeout: timedelta) -> dist.Store:
        """Return what all ranks share, once they are there; start those of this machine before."""
        assert self.environment is not None
        board = self._open_board(timeout)
        if self.starts:
            host = self.environment.main_address if self.nodes > 1 else "127.0.0.1"
            shared = {"MASTER_ADDR": host, "MASTER_PORT": str(board.port)}
            first = self.ranks.rank - self.local
            self.children.start(
                {first + i: {**shared, "LOCAL_RANK": str(i)} for i in range(1, self.devices)}
            )
        until = time.monotonic() + timeout.total_seconds()
        while not board.all_ready():
            self._end_if_one_has()
            if time.monotonic() > until:
                raise UserError(f"not all of {self.world} processes have started within {timeout}")
            time.sleep(0.05)
        return board.store

    def _end_if_one_has(self) -> None:
        """Raise LostRank if another rank has failed; it is rank 0 that says so."""
        if (lost := self._lost()) is not None and self.leads:
            raise LostRank(lost)
        if self.board is not None and self.board.failed() == 0:
            sys.exit(1)


def alone(given: Devices) -> Team:
    """Return a team of this process alone, on one device of those given."""
    return Team(given._replace(devices=1, nodes=1), alone=True)


def by_first(given: Devices, work: Callable[[], Result]) -> Result | None:
    """Return what rank 0 makes of `work`; the others that were started wait, and return None.

    Raises UserError if the processes or devices are not as given.
    """
    team = Team(given)
    with team.working():
        if team.leads:
            return work()
        team.orders()
    return None


def another_has_gone(error: BaseException) -> bool:
    """Return True if an exchange failed because another rank has ended."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    gone = ("peer", "connection closed", "connection reset", "timed out", "heartbeat", "ncclremote")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in gone)


def refuse_sweep_in_each_process(given: Devices) -> None:
    """Raise UserError if this process, one of several that SLURM started, sweeps."""
    if given.world > 1 and Ledger.folder is not None and not Team(given).starts:
        raise UserError(
            "srun would start the whole sweep in each of its processes; start it without: each "
            "job then starts its own, or SLURM's where hydra/launcher=submitit_slurm"
        )
