"""End of a command: a status that tells what happened, and a sentence, not a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from asap_exp.core import app, sweep
from asap_exp.core.command_line import start_again
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.tensors import load_tensors
from tests.stages import SINKHORN, TINY, run_train
from tests.test_commands import stage

pytestmark = pytest.mark.slow


def main(monkeypatch: pytest.MonkeyPatch, work: Callable[[object], object], *words: str) -> int:
    """Return the exit status of a stage that runs `work`."""
    monkeypatch.setattr(sys, "argv", ["train", *words])
    monkeypatch.setattr(sweep.Ledger, "folder", None)
    with pytest.raises(SystemExit) as end:
        app.main("train", TrainConfig, work)
    return end.value.code  # type: ignore[return-value]


def interrupt(_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_before_the_training_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, interrupt, "task=digits") == 130
    err = capsys.readouterr().err
    assert err == f"error: stopped by SIGINT; {start_again('train')}\n"


def test_what_takes_seconds_to_import_is_imported_where_signals_are_met() -> None:
    code = "import sys, asap_exp.train; print([m for m in ('torch', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_signal_ends_a_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[object] = []

    def second_is_stopped(config: TrainConfig) -> None:
        began.append(config.seed)
        if config.seed == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    words = ("-m", "task=digits", "seed=0,1,2", f"paths.results={tmp_path}")
    assert main(monkeypatch, second_is_stopped, *words) == 143
    assert began == [0, 1]
    err = capsys.readouterr().err
    assert "1 of 2 jobs failed" in err
    assert "job 1 (task=digits seed=1" in err


def test_crash_in_a_sweep_is_listed_with_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(config: TrainConfig) -> None:
        if config.seed == 0:
            raise AssertionError("a fault of the code")
        if config.seed == 1:
            raise UserError("a mistake")

    words = ("-m", "task=digits", "seed=0,1,2", f"paths.results={tmp_path}")
    assert main(monkeypatch, crash, *words) == 1
    err = capsys.readouterr().err
    assert "2 of 3 jobs failed" in err
    (log,) = re.findall(r"log: (\S+\.log)", err)
    assert "AssertionError: a fault of the code" in Path(log).read_text()


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_failed_jobs_of_any_launcher_fail_the_sweep(tmp_path: Path, launcher: str) -> None:
    words = ("task=digits", "seed=-2,-1")
    done = stage("train", "-m", f"hydra/launcher={launcher}", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "2 of 2 jobs failed" in done.stderr
    assert re.search(r"job 1 \(.*seed=-1.*\): seed=-1 is not allowed", done.stderr)
    assert "Traceback" not in done.stderr
    logs = [Path(log) for log in re.findall(r"log: (\S+)", done.stderr)]
    assert all(log.is_file() for log in logs)
    assert bool(logs) == (launcher == "submitit_local")


@contextmanager
def training(folder: Path, *words: str, stdout: int) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m asap_exp.train WORDS` in a session of its own, and kill all that is left."""
    with subprocess.Popen(
        [sys.executable, "-m", "asap_exp.train", *words],
        cwd=folder,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        stdout=stdout,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_terminated_command_says_so_and_goes_on_later(tmp_path: Path) -> None:
    words = (*TINY, *SINKHORN, "recipe.epochs=15", "callbacks.checkpoint_seconds=1000")
    shown = "callbacks.progress_bar=true"
    with training(tmp_path, *words, shown, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1/"):
                process.send_signal(signal.SIGTERM)
                break
        _, err = process.communicate()
    assert process.returncode == 143
    assert "Traceback" not in err
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert (
        f"error: stopped by SIGTERM; a checkpoint is saved ({checkpoint.relative_to(tmp_path)}): "
        "start the same command again, and it continues from there\n"
    ) in err
    again = run_train(tmp_path / "results", *words[len(TINY) :])
    assert again.manifest.resumed_from == "last.ckpt"
    assert [a.status for a in again.manifest.earlier_attempts] == ["interrupted"]
    whole = run_train(tmp_path / "whole", *words[len(TINY) :])
    expected, got = load_tensors(whole.weights), load_tensors(again.weights)
    assert all((tensor == got[name]).all() for name, tensor in expected.items())


def cpu_seconds(session: int) -> float:
    """CPU time of all processes of a session that still run, as Linux counts it."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(1200)
def test_stopped_workers_of_joblib_save_their_work(tmp_path: Path) -> None:
    """Waits for the workers as long as the sweep is at work: on a busy machine that may be long."""
    words = (*TINY, *SINKHORN, "recipe.epochs=5000", "callbacks.checkpoint_seconds=1000")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2")
    with training(tmp_path, "-m", *launcher, *words, stdout=subprocess.DEVNULL) as process:
        while len(list(tmp_path.rglob("metrics.csv"))) < 2:
            assert process.poll() is None
            assert cpu_seconds(process.pid) < 150
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 143
    assert "3 of 3 jobs failed or stopped" in err
    assert "not started: sweep was stopped" in err
    assert "Traceback" not in err
    manifests = [json.loads(file.read_text()) for file in tmp_path.rglob("manifest.json")]
    assert [manifest["status"] for manifest in manifests] == ["interrupted"] * 2
    assert len(list(tmp_path.rglob("last.ckpt"))) == 2


@pytest.mark.timeout(1200)
def test_job_that_submitit_stops_is_requeued_and_goes_on(tmp_path: Path) -> None:
    words = (*TINY, *SINKHORN, "recipe.epochs=30", "callbacks.checkpoint_seconds=1000", "seed=0,1")
    launcher = ("-m", "hydra/launcher=submitit_local")
    with training(tmp_path, *launcher, *words, stdout=subprocess.DEVNULL) as process:
        while not (begun := list(tmp_path.rglob("*-s0/logs/version_0/metrics.csv"))):
            assert process.poll() is None
            time.sleep(0.1)
        holder = json.loads((begun[0].parents[2] / ".lock.json").read_text())
        os.kill(holder["pid"], signal.SIGUSR2)
        _, err = process.communicate()
    assert process.returncode == 0, err
    manifests = [json.loads(file.read_text()) for file in tmp_path.rglob("manifest.json")]
    first, second = sorted(manifests, key=lambda manifest: manifest["seed"])
    assert first["resumed_from"] == "last.ckpt"
    assert [each["status"] for each in first["earlier_attempts"]] == ["interrupted"]
    assert second["resumed_from"] is None
