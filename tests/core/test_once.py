"""Errors of several processes: printed once if all raise them, and by whom if one does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asap_exp.core import once
from asap_exp.core.errors import UserError
from asap_exp.core.ranks import Devices, said_by_first
from asap_exp.core.team import Team
from tests.several import Ended, in_ranks

pytestmark = pytest.mark.slow


def together(work: Callable[[int], Any], *, begins: bool = True) -> list[Ended]:
    """How two ranks end that do this work."""

    def rank() -> None:
        team = Team(Devices("cpu", 2, 1))
        with team.working():
            if begins and team.leads:
                team.begin(None)
            elif begins:
                team.orders()
            with team.unbroken():
                work(team.ranks.rank)

    ended = [one for one in in_ranks(rank) if one is not None]
    assert len(ended) == 2
    return ended


@pytest.mark.parametrize("begins", [True, False], ids=["at work", "before"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (lambda rank: UserError(f"batch {rank} is empty"), 2),
        (lambda rank: FileNotFoundError(2, "No such file or directory", "data"), 2),
        (lambda rank: KeyError("weights"), 1),
    ],
    ids=["sentence", "machine", "fault"],
)
def test_what_all_raise_is_said_by_rank_0(
    error: Callable[[int], Exception], status: int, begins: bool
) -> None:
    def work(rank: int) -> None:
        raise error(rank)

    first, second = together(work, begins=begins)
    expected = error(0)
    assert first.error == f"{type(expected).__name__}: {expected}"
    assert second == Ended(None, f"SystemExit: {status}", "")


def test_what_one_rank_raises_is_said_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "PATIENCE", 0.5)

    def work(rank: int) -> None:
        import torch.distributed as dist

        if rank == 1:
            raise UserError("no memory is left here")
        dist.barrier()

    first, second = together(work)
    assert second.error == "UserError: no memory is left here"
    assert first.error.startswith("LostRank: rank 1 has failed, for the reason that it prints;")


def test_different_errors_are_said_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "PATIENCE", 2.0)

    def work(rank: int) -> None:
        raise UserError("no weights") if rank else UserError("no data")

    first, second = together(work)
    assert (first.error, second.error) == ("UserError: no data", "UserError: no weights")


def test_single_process_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(once, "said_by_first", lambda error: 1 / 0)
    assert not said_by_first(UserError("x"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not said_by_first(UserError("x"))


WRONG = {
    "key": (["task=digits", "trainer.devices=2", "recipe.epoch=3"], "Did you mean"),
    "number": (["task=digits", "trainer.devices=4"], "torchrun started 2 processes"),
    "data": (["task=cifar", "trainer.devices=2", "data.root=nowhere"], "nowhere"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_processes_of_torchrun_say_once_what_is_wrong(
    tmp_path: Path, words: list[str], said: str
) -> None:
    """By the command itself, which torchrun ends as soon as one process has ended."""
    given = ["trainer.accelerator=cpu", "logger=csv", f"paths.results={tmp_path}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "asap_exp.train", *words, *given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "ASAP_EXP_DATA": "", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert said in errors[0]
    assert "stopped by" not in done.stderr


def test_tasks_of_slurm_say_once_what_is_wrong(tmp_path: Path) -> None:
    """Two processes with the variables of srun."""
    variables = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": "0",
        "SLURM_NODELIST": "127.0.0.1",
    }
    command = [sys.executable, "-m", "asap_exp.train", "task=digits", "recipe.epoch=3"]
    tasks = [
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **variables, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(2)
    ]
    first, second = (task.communicate(timeout=120)[1] for task in tasks)
    assert [task.returncode for task in tasks] == [2, 2]
    assert "Did you mean" in first
    assert "error" not in second
