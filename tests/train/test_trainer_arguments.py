"""Arguments of Lightning's Trainer below `trainer`, and what other keys set."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import RunningStage

from asap_exp.core.composing import compose
from asap_exp.core.config import OTHERWISE, PASSED_ON, SAME_RESULTS, TrainConfig, TrainerConfig
from asap_exp.core.errors import UserError
from asap_exp.core.tensors import load_tensors
from asap_exp.core.training_log import training_curves
from asap_exp.engine import building
from asap_exp.train.trainer import train
from tests.stages import SINKHORN, TINY, run_train, train_config

SET_HERE = {
    *("accelerator", "devices", "num_nodes", "strategy"),
    *("precision", "limit_val_batches", "max_time"),
}
"""Arguments of the Trainer with a key of the same name that is not passed on as it is."""


def test_every_argument_of_lightning_is_a_key_or_says_what_is() -> None:
    takes = set(inspect.signature(L.Trainer).parameters)
    keys = {field.name for field in fields(TrainerConfig)}
    assert set(PASSED_ON) | SET_HERE | {"profiler"} == keys & takes
    ours = {
        *("compile", "compile_options", "cpu_threads", "cuda_graphs", "micro_batch"),
        "find_unused_parameters",
    }
    assert keys - takes == ours
    assert takes - keys == set(OTHERWISE)
    assert set(SAME_RESULTS) <= keys


@pytest.mark.parametrize("name", OTHERWISE)
def test_argument_that_another_key_sets_is_refused_with_it(name: str) -> None:
    for plus in ("", "+", "++"):
        with pytest.raises(UserError, match=f"^trainer.{name}=3 is refused: ") as error:
            compose("train", ["task=digits", f"{plus}trainer.{name}=3"], TrainConfig)
        assert OTHERWISE[name] in str(error.value)


@pytest.mark.parametrize("given", ["max_epoch", "callback", "gradient_clip_value"])
def test_typo_of_such_an_argument_says_what_to_use(given: str) -> None:
    with pytest.raises(UserError, match=r"Did you mean \w+\? That is refused: use \w+\.\w+"):
        compose("train", ["task=digits", f"trainer.{given}=3"], TrainConfig)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.limit_train_batches=1.5", "at most 1.0"),
        ("trainer.overfit_batches=0.0", "above 0"),
        ("trainer.fast_dev_run=maybe", "true or false or a whole number"),
        ("trainer.profiler=simpel", "Did you mean simple?"),
        ("trainer.gradient_clip_algorithm=max", "norm, value"),
        ("trainer.deterministic=often", "true, false, warn"),
        ("trainer.max_time=1h", "DAYS:HH:MM:SS"),
        ("trainer.accumulate_grad_batches=0", "at least 1"),
        ("trainer.micro_batch=0", "at least 1"),
    ],
)
def test_wrong_value_is_refused_with_what_is_allowed(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        compose("train", ["task=digits", override], TrainConfig)
    assert words in str(error.value)


@pytest.mark.slow
def test_arguments_reach_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict = {}
    make = L.Trainer

    def record(**arguments: object) -> L.Trainer:
        given.update(arguments)
        return make(**arguments)

    monkeypatch.setattr(building.L, "Trainer", record)
    run_train(
        tmp_path,
        *("recipe.epochs=1", "recipe.warmup_epochs=0", "trainer.deterministic=warn"),
        *("trainer.limit_train_batches=0.2", "trainer.detect_anomaly=true"),
        *("trainer.val_check_interval=0.5", "trainer.num_sanity_val_steps=1"),
    )
    assert given["deterministic"] == "warn"
    assert given["limit_train_batches"] == 0.2
    assert given["detect_anomaly"] is True
    assert given["val_check_interval"] == 0.5
    assert given["num_sanity_val_steps"] == 1
    assert given["max_epochs"] == 1
    assert "benchmark" not in given, "null is Lightning's own default"
    torch.use_deterministic_algorithms(False)


def test_what_lightning_refuses_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"trainer\.val_check_interval=50 is refused by Lightning: "
    ):
        run_train(tmp_path, "trainer.val_check_interval=50")


@pytest.mark.slow
def test_fast_dev_run_trains_one_batch(tmp_path: Path) -> None:
    run = run_train(tmp_path, "trainer.fast_dev_run=true")
    assert run.finished
    assert run.manifest.epochs == 1
    (row,) = json.loads(run.curves.read_text())
    assert {"train/loss_epoch", "val/accuracy"} <= row.keys()


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    plain = ("data.augment.mixup=0", "recipe.clip_norm=0.1", "trainer.limit_train_batches=null")
    small = (*plain, "recipe.batch_size=16", "trainer.accumulate_grad_batches=2")
    one, other = run_train(tmp_path, *plain), run_train(tmp_path, *small)
    expected = load_tensors(one.weights)
    for name, tensor in load_tensors(other.weights).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-3)


class TenSecondsPerStep(Timer):
    """Timer of a slow machine: a minute is over after six steps."""

    steps = 0

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        self.steps = trainer.global_step
        super().on_train_batch_end(trainer, *arguments, **more)

    def time_elapsed(self, stage: RunningStage | str = RunningStage.TRAINING) -> float:
        return 10.0 * self.steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "epochs"),
    [
        ("trainer.max_steps=6", 2),  # in the middle of the second epoch
        ("callbacks.early_stopping.patience=0", 2),
        ("trainer.max_time=00:00:01:00", 2),
    ],
)
def test_training_that_stops_early_is_finished(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    option: str,
    epochs: int,
) -> None:
    monkeypatch.setattr(building, "Timer", TenSecondsPerStep)
    slow = ("recipe.epochs=5", "recipe.lr=1e-9", "callbacks.checkpoint_seconds=1000")
    run = run_train(tmp_path, *slow, option)
    assert run.finished
    assert run.manifest.epochs == epochs
    assert f"Stopped after epoch {epochs} of 5" in capsys.readouterr().out
    curves = training_curves(run.path)
    assert len(curves) == epochs
    assert all({"train/loss_epoch", "val/accuracy"} <= row.keys() for row in curves)


@pytest.mark.slow
def test_stopped_training_does_not_go_on_when_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last checkpoint and the export of the weights."""
    from asap_exp.train import trainer as module

    config = train_config(
        tmp_path, "recipe.epochs=5", "recipe.lr=1e-9", "callbacks.early_stopping.patience=0"
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, "export", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    run = train(config)
    assert run.finished
    assert run.manifest.epochs == 2
    assert run.manifest.resumed_from == "last.ckpt"


@pytest.mark.slow
def test_trace_of_a_few_steps_is_one_that_perfetto_opens(tmp_path: Path) -> None:
    options = ("trainer.profiler=pytorch", "trainer.limit_train_batches=9", "trainer.compile=false")
    run = run_train(tmp_path, *options)
    assert {file.name for file in (run.path / "profile").iterdir()} == {
        "trace.json",
        "operators.txt",
    }
    events = json.loads((run.path / "profile" / "trace.json").read_text())["traceEvents"]
    steps = {e["name"] for e in events if str(e.get("name")).startswith("ProfilerStep#")}
    assert len(steps) == 5
    assert any(str(event.get("name")).startswith("aten::") for event in events)
    assert "aten::" in (run.path / "profile" / "operators.txt").read_text()


@pytest.mark.slow
def test_libraries_of_the_profiler_print_nothing(tmp_path: Path) -> None:
    """As a process of its own: they read how much to print when they are loaded."""
    given = ["trainer.profiler=pytorch", "trainer.accelerator=cpu", f"paths.results={tmp_path}"]
    command = [sys.executable, "-m", "asap_exp.train", *TINY, *SINKHORN, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "profiler_start" not in done.stdout


@pytest.mark.slow
def test_profile_lies_in_the_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_train(tmp_path, "trainer.profiler=simple", "trainer.limit_train_batches=1")
    (file,) = (run.path / "profile").iterdir()
    assert "run_training_batch" in file.read_text()
    assert "Profile: " in capsys.readouterr().out
    assert "profiler" in json.dumps(run.manifest.config["trainer"])
