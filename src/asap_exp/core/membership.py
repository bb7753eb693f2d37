"""Membership of a process in a team of ranks: what started it, and which rank that gives it."""

import os

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from asap_exp.core.errors import UserError
from asap_exp.core.ranks import Devices


class OwnProcesses(LightningEnvironment):
    """Processes started here or, with LOCAL_RANK and the like, by hand; not by Lightning.

    Lightning would start them when the training begins, with the arguments of the process: for a
    sweep that is the whole sweep once more.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True


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
