"""Processes of the other ranks: started by the command of the job, ended with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asap_exp.core import launch
from asap_exp.core.app import shared_by_jobs
from asap_exp.core.command_line import again, typed
from asap_exp.core.errors import UserError
from asap_exp.core.launch import Children
from asap_exp.core.ranks import PARENT


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch):
    """Return a function that starts ranks which run some code."""
    children = Children()

    def start(code: str, count: int = 1) -> Children:
        monkeypatch.setattr(launch, "again", lambda: ["-c", code])
        children.start({rank: {"LOCAL_RANK": str(rank)} for rank in range(1, count + 1)})
        return children

    yield start
    children.end(0)


def test_ranks_get_their_variables_and_end(started, tmp_path: Path) -> None:
    code = f"import os; open(r'{tmp_path}/' + os.environ['LOCAL_RANK'], 'w')"
    started(code, 2).end()
    assert {file.name for file in tmp_path.iterdir()} == {"1", "2"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL, perhaps for lack of memory"),
        ("raise SystemExit(2)", "failed with status 2, for the reason above"),
        ("raise SystemExit(143)", "was stopped by SIGTERM"),
    ],
)
def test_lost_rank_is_described(started, code: str, words: str) -> None:
    lost = started(code).lost(wait=20)
    assert lost is not None
    assert lost.startswith("rank 1 (process ")
    assert words in lost


def test_rank_that_does_not_end_is_killed(started) -> None:
    children = started("import time; time.sleep(60)")
    (child,) = children.started.values()
    assert children.lost() is None
    children.end(0)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_rank_ends_with_its_parent(tmp_path: Path) -> None:
    child = (
        "import time; from asap_exp.core.launch import end_with_parent as e; e();"
        f"open(r'{tmp_path}/begun', 'w'); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"c = subprocess.Popen([sys.executable, '-c', {child!r}],"
        f" env={{**os.environ, {PARENT!r}: str(os.getpid())}})\n"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        process.kill()
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_program_that_no_command_began_cannot_start_ranks() -> None:
    assert again() is None
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        Children().start({1: {}})
    Children().start({})


def test_job_of_a_sweep_is_repeated_alone() -> None:
    overrides = ["task=digits", "seed=0,1", "hydra.searchpath=[file://a]", "attention._module=json"]
    words = ["-m", "--config-dir", "mine", "-v", *overrides]
    shared = shared_by_jobs(words, overrides)
    assert shared == ["--config-dir", "mine", "-v", *overrides[2:]]
    with typed("train", words):
        assert again() == ["-m", "asap_exp.train", *words]
        with typed("train", words, [*shared, "task=digits", "seed=1"]):
            assert again() == ["-m", "asap_exp.train", *shared, "task=digits", "seed=1"]
    assert again() is None
    assert PARENT not in os.environ
