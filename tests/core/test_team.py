"""Ranks of a training: which this process has, and what the loss of another one looks like."""

import pytest

from asap_exp.core.composing import compose
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.ranks import ALONE, Devices, Ranks
from asap_exp.core.team import Team, another_has_gone
from tests.stages import SINKHORN, TINY

SLURM = {
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "7",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
}
BY_HAND = {"NODE_RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1"}


def devices(*overrides: str) -> Devices:
    given = [*TINY, *SINKHORN, "trainer.accelerator=cpu", *overrides]
    return compose("train", given, TrainConfig).trainer.together


def test_one_device_is_alone_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SLURM | BY_HAND).items():
        monkeypatch.setenv(name, value)
    team = Team(devices())
    assert team.leads
    assert team.ranks == ALONE
    with team.working():
        team.begin("nobody hears it")


@pytest.mark.parametrize("variables", [SLURM, TORCHRUN, BY_HAND], ids=["slurm", "torchrun", "hand"])
def test_rank_is_that_of_whoever_started_the_processes(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    team = Team(devices("trainer.devices=2", "trainer.num_nodes=2"))
    assert team.ranks == Ranks(3, 4)
    assert not team.leads
    assert not team.starts


def test_tasks_that_slurm_spreads_as_it_likes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="Use `--ntasks-per-node=4` instead"):
        Team(devices("trainer.devices=4"))
    Team(devices())


def test_process_that_nobody_started_starts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")  # a task of SLURM's with several GPUs
    team = Team(devices("trainer.devices=2"))
    assert team.leads
    assert team.starts


def test_failed_exchange_tells_of_the_rank_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(devices("trainer.devices=2"))
    failed = RuntimeError("[...pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer")
    with pytest.raises(RuntimeError, match="reset by peer"), team.unbroken():
        raise failed
    monkeypatch.setattr(team.children, "lost", lambda wait: "rank 1 was killed")
    with pytest.raises(UserError, match="rank 1 was killed"), team.unbroken():
        raise failed
    assert another_has_gone(failed)
    assert not another_has_gone(RuntimeError("shapes differ"))
