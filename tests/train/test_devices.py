"""Training on several devices: two processes on a CPU, which exchange gradients by gloo."""

import csv
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from asap_exp.core.composing import compose
from asap_exp.core.config import EvaluateConfig, TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import interruptible
from asap_exp.core.runs import Run, run_directory
from asap_exp.core.team import Team
from asap_exp.core.tensors import load_tensors
from asap_exp.distill.config import DistillConfig
from asap_exp.engine.building import require_weighted
from asap_exp.engine.module import Classifier
from asap_exp.train import trainer as training_fit
from asap_exp.train.trainer import resolved, train
from tests.composed import composed
from tests.data.sentences import text_root
from tests.several import FORK, Ended, in_ranks
from tests.stages import SINKHORN, TINY, TINY_TEXT, train_config
from tests.train.test_stop import Signal

TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.cpu_threads=1")
EXACT = (
    "data.limit=203",  # 21 of them for validation, in one batch
    "data.augment.mixup=0",
    "recipe.epochs=2",
    "trainer.log_every_n_steps=1",
)


def trained(config: TrainConfig) -> list[Run]:
    """Train in two processes, and return the run that each of them returns."""
    ended = in_ranks(lambda: train(config).path)
    for one in ended:
        assert one is not None
        assert not one.error, one.printed
    assert ended[1].printed == "", "rank 0 speaks for both"
    return [Run(one.result) for one in ended]


def rows(run: Run) -> list[dict[str, str]]:
    (file,) = run.path.glob("logs/*/metrics.csv")
    return list(csv.DictReader(file.open()))


def column(run: Run, name: str) -> list[float]:
    return [float(row[name]) for row in rows(run) if row.get(name)]


def files(run: Run) -> set[str]:
    return {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}


def assert_equal_weights(one: Run, two: Run) -> None:
    """The same weights but for rounding."""
    weights, others = load_tensors(one.weights), load_tensors(two.weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=2e-4, rtol=0)


def assert_equal_training(one: Run, two: Run) -> None:
    """The same losses and metrics at every step, except for rounding, and the same files."""
    for name in ("train/loss_step", "train/loss_epoch", "val/loss", "val/accuracy"):
        expected, got = column(one, name), column(two, name)
        assert len(expected) == len(got) > 0
        assert got == pytest.approx(expected, abs=1e-5), name
    diagnostics = [name for name in rows(one)[0] if name.startswith("plan/")]
    assert diagnostics
    for name in diagnostics:
        assert column(two, name) == pytest.approx(column(one, name), abs=1e-4), name
    assert_equal_weights(one, two)
    assert files(two) == files(one)
    assert two.name == one.name, "the number of devices is no part of a run's name"


@pytest.mark.slow
def test_images_train_as_on_one_device(tmp_path: Path) -> None:
    given = (*EXACT, "recipe.ema_decay=0.5", "recipe.batch_size=30")
    one = train(train_config(tmp_path / "one", *given))
    two, same = trained(train_config(tmp_path / "two", *given, *TWO))
    assert two.path == same.path
    assert_equal_training(one, two)
    assert two.manifest.config["trainer"]["devices"] == 2


@pytest.mark.slow
def test_texts_train_as_on_one_device(tmp_path: Path) -> None:
    """Batches of unequal lengths, with odd numbers of texts and with a single one."""
    root = text_root(tmp_path / "data", "agnews")
    given = (
        *("task=agnews", f"data.root={root}", f"data.cache={root / 'cache'}", "data.limit=75"),
        *(
            "model.dropout=0",
            "model.drop_path=0",
            "data.mask_share=0",
            "trainer.log_every_n_steps=1",
        ),
    )
    one = train(train_config(tmp_path / "one", *given, tiny=TINY_TEXT))
    two, _ = trained(train_config(tmp_path / "two", *given, *TWO, tiny=TINY_TEXT))
    assert_equal_training(one, two)


def in_callbacks(monkeypatch: pytest.MonkeyPatch, make: Callable[[], L.Callback]) -> None:
    build = training_fit.build_callbacks
    monkeypatch.setattr(training_fit, "build_callbacks", lambda *a: [make(), *build(*a)])


def rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def interrupted_train(config: TrainConfig) -> Any:
    with interruptible():
        return train(config)


def errors(ended: list[Ended | None]) -> list[str]:
    """What every rank raised."""
    assert None not in ended, "it was killed"
    return [one.error for one in ended if one]


RANDOM = ("data.augment.crop_padding=1", "data.augment.cutmix=1.0", "model.dropout=0.1")


@pytest.mark.slow
@pytest.mark.parametrize("reached", [0, 1])
def test_signal_to_one_rank_stops_both_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: int
) -> None:
    seldom = "callbacks.checkpoint_seconds=1000"
    whole, _ = trained(train_config(tmp_path / "whole", *RANDOM, *TWO))
    config = train_config(tmp_path / "parts", *RANDOM, *TWO, seldom)
    at = ("on_train_batch_end", 1, 1)
    with monkeypatch.context() as patch:
        none = ("on_train_batch_end", -1, -1)
        in_callbacks(patch, lambda: Signal(*(at if rank() == reached else none), signal.SIGTERM))
        ended = in_ranks(lambda: interrupted_train(config))
    assert errors(ended) == ["Interrupted: stopped by SIGTERM", "SystemExit: 143"]
    run = Run(run_directory(resolved(config)))
    assert run.manifest.status == "interrupted"
    trained(config)
    assert run.manifest.resumed_from == "last.ckpt"
    expected, got = load_tensors(whole.weights), load_tensors(run.weights)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    curves = [path.read_text() for path in (whole.curves, run.curves)]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_run_goes_on_with_another_number_of_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(train_config(tmp_path / "whole", *EXACT))
    two = train_config(tmp_path / "parts", *EXACT, *TWO)
    with monkeypatch.context() as patch:
        in_callbacks(patch, lambda: Signal("on_train_batch_end", 0, 1, signal.SIGTERM))
        ended = in_ranks(lambda: interrupted_train(two))
        assert errors(ended) == ["Interrupted: stopped by SIGTERM", "SystemExit: 143"]
    alone = train_config(tmp_path / "parts", *EXACT)
    with monkeypatch.context() as patch:
        in_callbacks(patch, lambda: Signal("on_train_batch_end", 1, 0, signal.SIGTERM))
        with pytest.raises(BaseException, match="stopped by SIGTERM"), interruptible():
            train(alone)
    run, _ = trained(two)
    assert [each.status for each in run.manifest.earlier_attempts] == ["interrupted"] * 2
    assert_equal_weights(whole, run)


class Die(L.Callback):
    """Callback that kills rank 1 in the second epoch, as the lack of memory would."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_killed_rank_ends_the_other_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(tmp_path, *TWO)
    with monkeypatch.context() as patch:
        in_callbacks(patch, Die)
        first, second = in_ranks(lambda: train(config).path)
    assert second is None
    assert first is not None
    assert "RuntimeError" in first.error
    run = Run(run_directory(resolved(config)))
    assert run.manifest.status == "failed"
    trained(config)
    assert run.finished
    assert run.manifest.resumed_from == "last.ckpt"


class Overflow(Classifier):
    """Module whose loss is infinite on rank 1 at the third step."""

    def loss_of(self, inputs: Any, targets: torch.Tensor) -> torch.Tensor:
        loss = super().loss_of(inputs, targets)
        training = self._trainer  # there is none yet when the memory is measured
        here = training and training.global_step == 2 and training.global_rank == 1
        return loss * torch.inf if here else loss


@pytest.mark.slow
def test_loss_that_is_not_finite_on_one_rank_stops_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asap_exp.train.own_classes.Classifier", Overflow)
    config = train_config(tmp_path, *TWO)
    ended = in_ranks(lambda: train(config).path)
    first, second = errors(ended)
    assert first.startswith("NonFiniteLoss: the loss is inf at step 2: every layer's output is")
    assert second == "SystemExit: 2"
    assert ended[1] is not None
    assert ended[1].printed == "", "rank 0 says it"


@pytest.mark.slow
def test_failure_of_rank_0_before_it_begins_ends_the_other(tmp_path: Path) -> None:
    config = train_config(tmp_path, *TWO, "data.limit=20")  # too few for a batch
    first, second = in_ranks(lambda: train(config).path)
    assert first is not None
    assert first.error.startswith("UserError: ")
    assert second == Ended(None, "SystemExit: 1", "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = train_config(tmp_path, *TWO)
    run, _ = trained(config)
    written = run.weights.stat().st_mtime_ns
    trained(config)
    assert run.weights.stat().st_mtime_ns == written


REFUSED = [
    ("trainer.devices=0", "at least 1"),
    ("trainer.devices=-1", "at least 1"),
    ("trainer.strategy=dp", "Did you mean ddp?"),
    ("trainer.strategy=ddp", "give their number with trainer.devices=2"),
    ("trainer.devices=5", r"set recipe\.batch_size=30 or 35, or train on 1, 2, 4, 8, 16 or 32 dev"),
    ("trainer.devices=2 trainer.micro_batch=4", "is for one device"),
    ("trainer.devices=2 trainer.strategy=fsdp trainer.accelerator=cpu", "needs GPUs"),
    ("devices=2", r"use trainer\.devices"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[given for given, _ in REFUSED])
def test_what_cannot_be_is_refused_with_what_can(given: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        compose("train", [*TINY, *SINKHORN, *given.split()], TrainConfig)


@pytest.mark.parametrize(
    ("stage", "schema", "key"),
    [
        ("train", TrainConfig, "trainer.accelerator"),
        ("distill", DistillConfig, "accelerator"),
        ("evaluate", EvaluateConfig, "accelerator"),
    ],
)
def test_gpu_that_is_not_there_is_refused_by_the_key_that_asked_for_it(
    stage: str, schema: type, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = [*TINY, *SINKHORN] if stage == "train" else []
    config: Any = composed(stage, [*given, f"{key}=gpu"], schema)
    words = f"^{key}=gpu was asked for, .*; choose {key}=cpu or auto$"
    with pytest.raises(UserError, match=words):
        Team(config.trainer.together if stage == "train" else config.together)
    if stage == "train":
        with pytest.raises(UserError, match=words):
            resolved(config)


def test_more_devices_than_there_are_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    config = train_config(tmp_path, "trainer.devices=4", "trainer.accelerator=cpu")
    with pytest.raises(UserError, match=r"has 2 CPU cores; set trainer\.devices=2"):
        train(config)


def test_other_number_of_processes_than_torchrun_started_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    for devices in (1, 2):
        with pytest.raises(UserError, match=f"torchrun started 4 processes.*make {devices};"):
            train(train_config(tmp_path, f"trainer.devices={devices}"))


def test_several_nodes_need_to_know_one_another(tmp_path: Path) -> None:
    config = train_config(tmp_path, "trainer.num_nodes=2", "trainer.accelerator=cpu")
    with pytest.raises(UserError, match="there is no NODE_RANK"):
        train(config)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine four processes take minutes to import PyTorch
def test_each_job_of_a_sweep_starts_its_own_ranks(tmp_path: Path) -> None:
    """The ranks that a command starts itself, by the same command."""
    tiny = [*TINY, *SINKHORN, *TWO, "trainer.limit_train_batches=1", "recipe.epochs=2"]
    words = [*tiny, f"paths.results={tmp_path}", "-m", "seed=0,1"]

    def sweep(said: Path) -> None:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
        sys.argv = ["train", *words]
        runpy.run_module("asap_exp.train", run_name="__main__")

    said = tmp_path / "said"
    process = FORK.Process(target=sweep, args=(said,))
    process.start()
    process.join(1100)
    assert process.exitcode == 0, said.read_text()
    assert said.read_text().count("Finished: ") == 2
    assert "warning" not in said.read_text().lower()
    folders = [file.parent.name[-3:] for file in tmp_path.glob("runs/digits/*/*/manifest.json")]
    assert sorted(folders) == ["-s0", "-s1"]
    assert len(list((tmp_path / "runs" / ".multirun").iterdir())) == 1


class OwnStep(Classifier):
    """Module whose own step does not weight its loss."""

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        inputs, targets = batch
        return self.loss_of(inputs, targets)


def test_step_of_ones_own_is_refused_for_unequal_parts(tmp_path: Path) -> None:
    given = ("task=agnews", *TWO)
    texts = train_config(tmp_path, *given, tiny=TINY_TEXT)
    images = train_config(tmp_path, *TWO)
    net = torch.nn.Linear(1, 1)
    for config, refused in ((texts, True), (images, False)):
        own = OwnStep(net, config.recipe, num_classes=2, seed=0)
        require_weighted(config, Classifier(net, config.recipe, num_classes=2, seed=0))
        if refused:
            with pytest.raises(UserError, match="OwnStep has a training_step of its own"):
                require_weighted(config, own)
        else:
            require_weighted(config, own)


@pytest.mark.slow
def test_weights_that_no_loss_depends_on_do_not_stop_it(tmp_path: Path) -> None:
    """Uniform attention looks at neither queries nor keys, and so not at their norms."""
    given = (*EXACT, "model.qk_norm=true")
    uniform = [each for each in TINY if "attention" not in each]
    config = [
        compose("train", [*uniform, "attention=uniform", *given, *more], TrainConfig)
        for more in (
            [f"paths.results={tmp_path / 'one'}"],
            [f"paths.results={tmp_path / 'two'}", *TWO],
        )
    ]
    one = train(config[0])
    two, _ = trained(config[1])
    assert (
        "the loss does not depend on net.blocks.0.attn.q_norm.weight"
        in (two.path / "run.log").read_text()
    )
    assert_equal_weights(one, two)


class Sometimes(Classifier):
    """Module that uses its second scale in odd steps alone."""

    def __init__(self, net: torch.nn.Module, *arguments: Any, **options: Any) -> None:
        super().__init__(net, *arguments, **options)
        net.scales = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(())) for _ in range(2))

    def loss_of(self, inputs: Any, targets: torch.Tensor) -> torch.Tensor:
        scales = self.net.scales
        assert isinstance(scales, torch.nn.ParameterList)
        odd = self._trainer is None or self._trainer.global_step % 2 == 1
        return super().loss_of(inputs, targets) * scales[0] * (scales[1] if odd else 1)


@pytest.mark.slow
def test_weights_that_some_losses_do_not_depend_on_are_refused_or_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asap_exp.train.own_classes.Classifier", Sometimes)
    one = train(train_config(tmp_path / "one", *EXACT))
    ended = in_ranks(lambda: train(train_config(tmp_path / "two", *EXACT, *TWO)))
    first, second = errors(ended)
    assert first.startswith("UserError: the loss of some steps does not depend on all weights")
    assert "set trainer.find_unused_parameters=true" in first
    assert second == "SystemExit: 2"
    assert ended[1] is not None
    assert ended[1].printed == "", "rank 0 says it"
    looked_for = "trainer.find_unused_parameters=true"
    two, _ = trained(train_config(tmp_path / "two", *EXACT, *TWO, looked_for))
    assert_equal_weights(one, two)


class UnusedHead(Classifier):
    """Module with a step of its own, and a weight beside the network that it does not use."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idle = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        inputs, targets = batch
        return self.loss_of(inputs, targets)


@pytest.mark.slow
def test_step_of_ones_own_may_leave_weights_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asap_exp.train.own_classes.Classifier", UnusedHead)
    one = train(train_config(tmp_path / "one", *EXACT))
    two, _ = trained(train_config(tmp_path / "two", *EXACT, *TWO))
    assert_equal_weights(one, two)
