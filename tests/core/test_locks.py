"""A directory is held by one process until that process ends, in any way."""

import subprocess
import sys
import textwrap
from errno import ENOLCK
from pathlib import Path

import filelock
import pytest

from asap_exp.core import locks
from asap_exp.core.errors import UserError
from asap_exp.core.locks import HOLDER, emptied_unless_begun, held, part_held, require_free


def holder_process(folder: Path, *, soft: bool = False) -> subprocess.Popen[str]:
    """Start a process that holds `folder` until it is killed."""
    code = f"""
        import sys
        from pathlib import Path
        from asap_exp.core import locks
        if {soft}:
            locks.FileLock = locks.SoftFileLock
        with locks.held(Path({str(folder)!r})):
            print("held", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    process = holder_process(tmp_path / "run")
    try:
        message = rf"run is in use by process {process.pid} on .*since"
        with pytest.raises(UserError, match=message), held(tmp_path / "run"):
            pass
        process.kill()
        process.wait()
        with held(tmp_path / "run"):
            pass
    finally:
        process.kill()


@pytest.mark.slow
def test_stale_lock_file_is_taken_over_where_there_is_no_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoFlock(filelock.FileLock):
        def _acquire(self) -> None:
            raise OSError(ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "FileLock", NoFlock)
    process = holder_process(tmp_path / "run", soft=True)
    try:
        message = f"is in use by process {process.pid}"
        with pytest.raises(UserError, match=message), held(tmp_path / "run"):
            pass
        process.kill()
        process.wait()
        with held(tmp_path / "run", wait=5):
            assert (tmp_path / "run" / HOLDER).exists()
    finally:
        process.kill()


def test_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(UserError, match="is in use by process"), held(tmp_path):
        pass


def test_folder_in_which_nothing_was_written_is_gone_again(tmp_path: Path) -> None:
    with held(tmp_path / "empty"):
        assert (tmp_path / "empty").is_dir()
    assert not (tmp_path / "empty").exists()
    with held(tmp_path / "used"):
        (tmp_path / "used" / "result").touch()
    assert (tmp_path / "used" / "result").exists()
    assert not (tmp_path / "used" / HOLDER).exists()


def test_parts_are_held_side_by_side_but_not_within_a_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BRIEFLY", 0.0)
    one, other = tmp_path / "one", tmp_path / "other"
    with part_held(tmp_path, one), part_held(tmp_path, other):
        with pytest.raises(UserError, match="one is in use by"), part_held(tmp_path, one):
            pass
        with pytest.raises(UserError, match="one is in use by"):
            require_free([one])
    with held(tmp_path), pytest.raises(UserError, match="is in use by"), part_held(tmp_path, one):
        pass


def test_folder_in_which_nothing_was_written_leaves_none_above_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "results").mkdir()
    with held(tmp_path / "results/runs/imdb/encoder/a-s0"):
        pass
    assert list((tmp_path / "results").iterdir()) == []
    with held(tmp_path / "results/runs/imdb/encoder/a-s0"), held(tmp_path / "results/runs/x"):
        (tmp_path / "results/runs/imdb/kept").touch()
    assert [file.name for file in (tmp_path / "results/runs").rglob("*")] == ["imdb", "kept"]


@pytest.mark.parametrize("begun", [False, True])
def test_work_that_fails_before_its_manifest_leaves_nothing(tmp_path: Path, begun: bool) -> None:
    run = tmp_path / "run"

    def fail() -> None:
        with held(run), emptied_unless_begun(run):
            (run / "config.yaml").touch()
            (run / "wandb").mkdir()
            (run / "wandb/log").touch()
            if begun:
                (run / "manifest.json").touch()
            raise UserError("wandb did not start")

    with pytest.raises(UserError):
        fail()
    assert run.exists() is begun


def test_folder_with_something_in_it_is_kept_when_work_fails(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError), held(tmp_path), emptied_unless_begun(tmp_path):
        raise UserError("a mistake")
    assert (tmp_path / "config.yaml").is_file()
