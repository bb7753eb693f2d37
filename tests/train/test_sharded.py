"""Weights shared out over the devices: on a CPU here, where it is refused to users."""

import signal
from pathlib import Path

import pytest
import torch

from asap_exp.core.composing import compose
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted, interruptible
from asap_exp.core.tensors import load_tensors
from asap_exp.models import load_net
from asap_exp.train import trainer
from asap_exp.train.trainer import train
from tests.several import in_ranks
from tests.stages import SINKHORN, TINY, train_config
from tests.train.test_devices import (
    EXACT,
    Overflow,
    assert_equal_training,
    errors,
    in_callbacks,
    interrupted_train,
    trained,
)
from tests.train.test_stop import Signal

SHARDED = ("trainer.devices=2", "trainer.strategy=fsdp", "trainer.cpu_threads=1")


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "check_strategy", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
def test_sharded_training_is_that_of_one_device(tmp_path: Path) -> None:
    one = train(train_config(tmp_path / "one", *EXACT))
    two, _ = trained(train_config(tmp_path / "two", *EXACT, *SHARDED))
    assert_equal_training(one, two)
    load_net(two)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
def test_checkpoint_is_that_of_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser's state too, whose groups are in another order than the weights."""
    whole = train(train_config(tmp_path / "whole", *EXACT))
    sharded = train_config(tmp_path / "parts", *EXACT, *SHARDED)
    with monkeypatch.context() as patch:
        in_callbacks(patch, lambda: Signal("on_train_batch_end", 0, 2, signal.SIGTERM))
        ended = in_ranks(lambda: interrupted_train(sharded))
    assert errors(ended) == ["Interrupted: stopped by SIGTERM", "SystemExit: 143"]
    with monkeypatch.context() as patch:
        in_callbacks(patch, lambda: Signal("on_train_batch_end", 1, 0, signal.SIGTERM))
        with pytest.raises(Interrupted), interruptible():
            train(train_config(tmp_path / "parts", *EXACT))
    run, _ = trained(sharded)
    expected, got = load_tensors(whole.weights), load_tensors(run.weights)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=2e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
def test_loss_that_is_not_finite_names_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asap_exp.train.own_classes.Classifier", Overflow)
    config = train_config(tmp_path, *SHARDED)
    first, second = errors(in_ranks(lambda: train(config).path))
    assert first.startswith("NonFiniteLoss: the loss is inf at step 2: every layer's output is")
    assert second == "SystemExit: 2"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("recipe.ema_decay=0.9", "set recipe.ema_decay=null"),
        ("recipe.optimizer=lion", "set recipe.optimizer=adamw"),
        ("trainer.precision=16-mixed", "set trainer.precision=bf16-mixed"),
        ("module={_target_: a.B}", "set module=null"),
    ],
)
def test_what_sharding_lacks_is_refused(given: str, words: str) -> None:
    with pytest.raises(UserError, match=r"does not work with trainer\.strategy=fsdp") as error:
        compose("train", [*TINY, *SINKHORN, *SHARDED, given], TrainConfig)
    assert words in str(error.value)
