"""Team of processes of one stage, one per device: who they are, how they begin and end."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from asap_exp.core.agreement import of_first, wait_for_all
from asap_exp.core.console import quiet
from asap_exp.core.devices import choose_device
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted
from asap_exp.core.launch import Children, end_with_parent
from asap_exp.core.nan_check import NonFiniteLoss
from asap_exp.core.ranks import ALONE, Devices, Ranks
from asap_exp.core.sweep import Ledger

PREPARES = timedelta(hours=6)
"""Time in which rank 0 must have prepared the data."""

ARRIVE = timedelta(minutes=1)
"""Time in which the other ranks must arrive to hear that there is nothing to do."""

WORK, DONE, FAILED = "work", "done", "failed"
"""What rank 0 tells the others: to begin, or that all is done or it could not begin."""

TOGETHER = (Interrupted, NonFiniteLoss)
"""Errors that every rank raises at the same step."""


class OwnProcesses(LightningEnvironment):
    """Processes started here or, with LOCAL_RANK and the like, by hand; not by Lightning.

    Lightning would start them when the training begins, with the arguments of the process: for a
    sweep that is the whole sweep once more.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True


class Team:
    """Processes of one stage; rank 0 leads: it prepares the work and alone writes files."""

    def __init__(self, given: Devices, *, stops_together: bool = False) -> None:
        """Find out the rank of this process; raise UserError if there are too few devices.

        With `stops_together`, a signal to one rank reaches the others, which save their work.
        """
        self.stops_together = stops_together
        self.devices, self.nodes, self.world = given.devices, given.nodes, given.world
        self.device = choose_device(given.accelerator)
        self.environment = environment_of(given)
        self.ranks, self.children = ALONE, Children()
        self.store: dist.Store | None = None
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

        Other ranks than 0 print nothing but errors of their own.
        """
        if self.environment is None:
            yield
            return
        if not self.leads:
            quiet(f"rank {self.ranks.rank}")
            end_with_parent()
        try:
            yield
            self._dismiss()
            if self.begun:
                wait_for_all()
        except BaseException as error:
            if not isinstance(error, Interrupted):  # a signal reaches those that wait as well
                with suppress(Exception):
                    self._dismiss(failed=True)
            together = isinstance(error, TOGETHER) and self.stops_together
            self.children.end(5 if together else 0)
            if not self.leads:  # what rank 0 says too is said once
                if isinstance(error, Interrupted):
                    sys.exit(error.exit_status)
                if isinstance(error, NonFiniteLoss) or another_has_gone(error):
                    sys.exit(1)
            raise
        else:
            self.children.end()
        finally:
            if self.begun:
                dist.destroy_process_group()
            self.store = None

    @property
    def starts(self) -> bool:
        """True if this process starts the others of its machine."""
        return isinstance(self.environment, OwnProcesses) and "LOCAL_RANK" not in os.environ

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
        if what == FAILED:
            sys.exit(1)
        self.works = what == WORK
        return orders

    def _dismiss(self, *, failed: bool = False) -> None:
        """Tell ranks that were not started here, and wait for rank 0, that it does not begin."""
        if self.leads and not self.begun and not self.starts:
            self._open(ARRIVE)
            of_first((FAILED if failed else DONE, self.nothing_to_do))

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
            if (lost := self.children.lost(wait=3)) is not None:
                raise UserError(lost) from error
            raise

    def _open(self, timeout: timedelta) -> None:
        """Open the group of processes, on which tensors of the host can be exchanged too.

        Every rank must arrive within the timeout.
        """
        gpu = self.device.type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        options: dict[str, Any] = {"device_id": self.device} if gpu else {}
        rank, environment = self.ranks.rank, self.environment
        if isinstance(environment, OwnProcesses):
            store = self._met(timeout)
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=self.world,
                timeout=timeout,
                **options,
            )
        else:
            assert environment is not None
            _ = environment.main_address, environment.main_port  # SLURM's are set by a look at them
            dist.init_process_group(
                backend, rank=rank, world_size=self.world, timeout=timeout, **options
            )
        self.begun = True

    def _met(self, timeout: timedelta) -> dist.Store:
        """Return the store at which all ranks have arrived; start those of this machine before."""
        given = os.environ.get("MASTER_PORT") if self.nodes > 1 or not self.starts else None
        host = os.environ.get("MASTER_ADDR", "127.0.0.1") if given else "127.0.0.1"
        store = self.store = dist.TCPStore(
            host,
            int(given or 0),
            self.world,
            is_master=self.leads,
            wait_for_workers=False,
            timeout=timeout,
        )
        first = self.ranks.rank - self.local
        if self.starts:
            shared = {"MASTER_ADDR": host, "MASTER_PORT": str(store.port)}
            self.children.start(
                {first + i: {**shared, "LOCAL_RANK": str(i)} for i in range(1, self.devices)}
            )
        store.set(str(self.ranks.rank), "here")
        until = time.monotonic() + timeout.total_seconds()
        while not store.check([str(rank) for rank in range(self.world)]):
            if (lost := self.children.lost()) is not None:
                raise UserError(lost)
            if time.monotonic() > until:
                raise UserError(f"not all of {self.world} processes have started within {timeout}")
            time.sleep(0.05)
        return store


def alone(given: Devices) -> Team:
    """Return a team of this process alone; UserError if there are fewer devices than given."""
    Team(given)
    return Team(given._replace(devices=1, nodes=1))


def another_has_gone(error: BaseException) -> bool:
    """Return True if an exchange failed because another rank has ended."""
    gone = ("peer", "connection closed", "connection reset", "timed out", "heartbeat")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in gone)


def environment_of(given: Devices) -> ClusterEnvironment | None:
    """Return what says which rank this process has; None for work on one device.

    Raises UserError if torchrun or SLURM started another number of processes than configured.
    """
    devices, nodes, world, keys = given.devices, given.nodes, given.world, given.keys
    torchrun = TorchElasticEnvironment.detect()
    slurm = None if torchrun or world == 1 else slurm_environment()
    started = world
    if torchrun or slurm:
        started = int(os.environ["WORLD_SIZE" if torchrun else "SLURM_NTASKS"])
    if started != world:
        who, each, machines = (
            ("torchrun", "--nproc-per-node", "--nnodes")
            if torchrun
            else ("SLURM", "--ntasks-per-node", "--nodes")
        )
        raise UserError(
            f"{who} started {started} processes, but {keys}devices={devices} on "
            f"{keys}num_nodes={nodes} make {world}; set {each} to {keys}devices, and "
            f"{machines} to {keys}num_nodes"
        )
    if world == 1:
        return None
    if torchrun:
        return TorchElasticEnvironment()
    if slurm:
        return slurm
    missing = [
        name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)
    ]
    if nodes > 1 and missing:
        raise UserError(
            f"{keys}num_nodes={nodes} needs torchrun or SLURM's srun on every node, or the same "
            f"command on each with NODE_RANK, MASTER_ADDR and MASTER_PORT set; there is no "
            f"{missing[0]}"
        )
    return OwnProcesses()


def slurm_environment() -> SLURMEnvironment | None:
    """Return SLURM's environment if it started several processes; a single one may start others.

    Raises UserError if their number on each machine is not given.
    """
    try:
        several = SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
        return SLURMEnvironment() if several else None
    except RuntimeError as error:
        raise UserError(" ".join(str(error).split())) from error


def check_devices(given: Devices, device: torch.device) -> None:
    """Raise UserError if this machine has fewer devices than configured."""
    gpu = device.type == "cuda"
    there = torch.cuda.device_count() if gpu else os.cpu_count() or 1
    if given.devices > there:
        key, what = f"{given.keys}devices", "GPU" if gpu else "CPU core"
        raise UserError(
            f"{key}={given.devices}, but this machine has {there} {what}"
            f"{'s' if there > 1 else ''}; set {key}={there}",
            key=key,
            value=given.devices,
            allowed=there,
        )


def refuse_sweep_in_each_process(given: Devices) -> None:
    """Raise UserError if this process, one of several that SLURM started, sweeps."""
    if given.world > 1 and Ledger.folder is not None and not Team(given).starts:
        raise UserError(
            "srun would start the whole sweep in each of its processes; start it without: each "
            "job then starts its own, or SLURM's where hydra/launcher=submitit_slurm"
        )
