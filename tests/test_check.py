"""`check=true`: it finds what would stop a stage, says how long that takes, and writes nothing."""

import re
import resource
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from asap_exp.benchmark.__main__ import run as benchmark
from asap_exp.core import checking
from asap_exp.core.config import BenchmarkConfig, EvaluateConfig, ReportConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run
from asap_exp.core.score import Score
from asap_exp.distill.__main__ import run as distill
from asap_exp.distill.config import DistillConfig
from asap_exp.engine import footprint
from asap_exp.evaluate.__main__ import run as evaluate
from asap_exp.report.__main__ import run as report
from asap_exp.train.__main__ import run as train
from tests.composed import composed
from tests.data.own.made import request, sentences, write_csv
from tests.several import Ended, in_ranks
from tests.stages import BENCHMARK, CALIBRATION, EVALUATION, TINY_TEXT, run_train, train_config

pytestmark = pytest.mark.slow

ESTIMATE = re.compile(r"Checked, nothing was written\. Would run: .*; about .* \(an estimate")


def check_train(results: Path, *words: str, **options: tuple[str, ...]) -> Score:
    return scored(train(train_config(results, "check=true", *words, **options)))


def check_distill(results: Path, *words: str) -> Score:
    given = [*CALIBRATION, f"paths.results={results}", "check=true", *words]
    return scored(distill(composed("distill", given, DistillConfig)))


def check_evaluate(results: Path, *words: str) -> Score:
    given = [*EVALUATION, f"paths.results={results}", "check=true", *words]
    return scored(evaluate(composed("evaluate", given, EvaluateConfig)))


def scored(score: Score | None) -> Score:
    assert score is not None
    return score


def check_benchmark(results: Path, *words: str) -> Score | None:
    given = [*BENCHMARK, f"paths.results={results}", "check=true", *words]
    return benchmark(composed("benchmark", given, BenchmarkConfig))


def check_report(results: Path) -> None:
    report(composed("report", [f"paths.results={results}", "check=true"], ReportConfig))


def everything(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return every file below a folder, with what it holds and when it was written."""
    files = [path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """Fail if a file below `tmp_path` was made, changed or removed."""
    before = everything(tmp_path)
    yield
    assert everything(tmp_path) == before


# Sound commands


def test_sound_training_is_estimated_and_leaves_nothing(tmp_path, capsys) -> None:
    score = check_train(tmp_path)
    assert score.value is not None
    assert score.value > 0
    assert score.lower_is_better
    out = capsys.readouterr().out
    assert ESTIMATE.search(out)
    assert "3 epochs of 4 batches, from the start" in out
    assert not list(tmp_path.iterdir())
    check_train(tmp_path, "trainer.max_steps=5")
    assert "2 epochs of 4 batches" in capsys.readouterr().out


def test_batch_larger_than_the_data_is_told_and_no_mistake(tmp_path, capsys) -> None:
    check_train(tmp_path, "recipe.batch_size=5000", "data.limit=300")
    out, err = capsys.readouterr()
    assert "warning: recipe.batch_size=5000 is more than the 270 training images" in err
    assert ESTIMATE.search(out)


@pytest.mark.parametrize("task", ["task=wikitext", "task=digits"])
def test_check_trains_whatever_the_model_predicts(tmp_path, capsys, task) -> None:
    text = {"tiny": TINY_TEXT} if task == "task=wikitext" else {}
    words = ("experiment=wikitext_excerpt", "data.cache=" + str(tmp_path / "c")) if text else ()
    check_train(tmp_path / "r", task, *words, "callbacks.early_stopping.patience=2", **text)
    assert ESTIMATE.search(capsys.readouterr().out)
    assert not (tmp_path / "r").exists()


def test_later_stages_are_checked_and_leave_nothing(pipeline, untouched, capsys) -> None:
    words = (
        "calibration=kl",
        "calibration.seed=5",
        "calibration.samples=32",
        "calibration.slices=3",
    )
    assert check_distill(pipeline.results, *words).value
    assert check_distill(
        pipeline.results, "budget.accuracy_drop=1", "budget.latency.rounds=3"
    ).value
    assert check_evaluate(pipeline.results).value
    coarse = ("calibration=coarse", "calibration.coarse.tokens=2", "calibration.slices=0")
    check_distill(pipeline.results, *coarse)
    assert len(ESTIMATE.findall(capsys.readouterr().out)) == 4
    check_report(pipeline.results)
    assert "1 evaluation, 2 trainings and 0 benchmarks" in capsys.readouterr().out


def test_benchmark_is_checked(tmp_path, capsys) -> None:
    score = check_benchmark(tmp_path)
    assert score is not None
    assert ESTIMATE.search(capsys.readouterr().out)
    check_benchmark(tmp_path, "mode=step", "task=digits", "step.attentions=[softmax]")
    assert ESTIMATE.search(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_first_of_several_processes_checks_and_the_others_wait(tmp_path) -> None:
    """As torchrun and srun start them."""
    config = train_config(tmp_path, "check=true", "trainer.devices=2", "trainer.accelerator=cpu")
    first, second = in_ranks(lambda: train(config))
    assert first is not None
    assert ESTIMATE.search(first.printed), first.error
    assert second == Ended(None, "", "")
    wrong = replace(config, resume=str(tmp_path / "none.ckpt"))
    first, second = in_ranks(lambda: train(wrong))
    assert first is not None
    assert "does not exist" in first.error
    assert second is not None
    assert (second.error, second.printed) == ("SystemExit: 1", "")
    assert not list(tmp_path.iterdir())


# Ten planted faults


@contextmanager
def small_files() -> Iterator[None]:
    """Limit files to 1,000 bytes, so that the kernel refuses as at a quota or a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # it would be cut off
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        call()


def test_1_missing_data(tmp_path, untouched, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    words = ("task=imdb", f"data.root={tmp_path}", f"data.cache={tmp_path / 'cache'}")
    refused(lambda: check_train(tmp_path, *words, tiny=TINY_TEXT), "imdb was not found")


def test_2_wrong_columns(tmp_path) -> None:
    folder = tmp_path / "data"
    write_csv(folder / "train.csv", **sentences(20))
    words = (f"paths.results={tmp_path / 'results'}", "check=true", "data.text_column=remark")
    refused(lambda: train(request("texts", folder, *words)), "text_column=remark")
    assert not (tmp_path / "results").exists()


def test_3_no_space(tmp_path, untouched, monkeypatch) -> None:
    with small_files():
        refused(lambda: check_train(tmp_path), "could not be written.*Free some space")
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(checking.shutil, "disk_usage", lambda _: full)
    refused(lambda: check_train(tmp_path), "needs about .* are free there; free some space")


def test_4_no_permission(tmp_path, untouched, monkeypatch) -> None:
    def locked(**_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(checking.tempfile, "TemporaryFile", locked)
    refused(lambda: check_train(tmp_path), "Permission denied.*Unlock the folder")


def test_5_batch_too_large(tmp_path, untouched, monkeypatch) -> None:
    monkeypatch.setattr(footprint, "available_memory", lambda: 400 * 2**20)
    words = ("recipe.batch_size=1000", "trainer.micro_batch=1000", "model.dim=512")
    refused(lambda: check_train(tmp_path, *words), r"takes about .* Set trainer\.micro_batch=\d+")


def test_5_batch_of_a_later_stage_too_large(pipeline, untouched) -> None:
    huge = str(10**9)
    refused(
        lambda: check_distill(pipeline.results, f"calibration.batch_size={huge}", "layer=last"),
        r"more memory.*choose a smaller calibration\.batch_size",
    )
    refused(lambda: check_evaluate(pipeline.results, f"batch_size={huge}"), "smaller batch_size")


def test_6_unknown_device(tmp_path, untouched) -> None:
    refused(lambda: check_train(tmp_path, "trainer.accelerator=gpu"), "sees no CUDA device")
    refused(lambda: check_train(tmp_path, "trainer.accelerator=tpu"), "Choose one of auto, cpu")


def test_7_checkpoint_of_another_run(pipeline, untouched) -> None:
    results, other = pipeline.results, pipeline.softmax
    resume = f"resume={other.checkpoint}"
    refused(lambda: check_train(results, "seed=9", resume), "has another configuration")
    refused(
        lambda: check_train(results, "model.dim=8", f"init_from={other.path}"), "do not fit this"
    )
    refused(lambda: check_distill(results, f"teacher={other.path}"), "only a Sinkhorn teacher")


def test_8_finished_run(pipeline, untouched, capsys) -> None:
    score = check_train(pipeline.results)
    assert (score.value, score.text) == (0.0, "finished")
    check_distill(pipeline.results)
    out = capsys.readouterr().out
    assert "Already finished" in out
    assert "Already compiled" in out
    assert out.count("Would run: nothing, it is finished") == 2


def test_9_tracker_out_of_reach(tmp_path, untouched, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC", "https_proxy", "HTTPS_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    refused(lambda: check_train(tmp_path, "logger=both"), "wandb has no key")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        refused(lambda: check_train(tmp_path, "logger=both"), "wandb's server .* cannot be reached")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        check_train(tmp_path, "logger=both")


def test_10_impossible_budget(pipeline, untouched) -> None:
    results = pipeline.results
    refused(
        lambda: check_distill(results, "budget.latency_ratio=0.001"), "cannot be reached: with the"
    )
    more = ("budget.accuracy_drop=1", "budget.latency.batch_size=100000")
    refused(lambda: check_distill(results, *more), "choose fewer")
    words = ("budget.accuracy_drop=1", "budget.latency_ratio=0.5")
    refused(lambda: check_distill(results, *words), "give one of them")


# What is under way, and sweeps


def test_interrupted_run_is_estimated_from_where_it_stopped(tmp_path, capsys) -> None:
    run = run_train(tmp_path)
    run.weights.unlink()
    before = everything(tmp_path)
    check_train(tmp_path, "recipe.epochs=3")
    assert everything(tmp_path) == before
    assert "0 epochs of 4 batches, from" in capsys.readouterr().out
    assert isinstance(run, Run)
