"""A signal stops training after the current step, with everything saved."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from asap_exp.core.interruption import Interrupted, interruptible
from asap_exp.core.runs import Run, run_directory
from asap_exp.core.tensors import load_tensors
from asap_exp.engine.checkpoints import load_checkpoint
from asap_exp.train import trainer as training_fit
from asap_exp.train.trainer import resolved, train
from tests.stages import TINY_TEXT, train_config

pytestmark = pytest.mark.slow


class Signal(L.Callback):
    """Callback that sends this process one signal, in the hook `where` of an epoch and batch."""

    def __init__(self, where: str, epoch: int, batch: int, number: int) -> None:
        self.epoch, self.batch, self.number = epoch, batch, number
        self.sent = False
        setattr(self, where, self.send)

    def send(self, trainer: L.Trainer, *_: Any) -> None:
        here = trainer.current_epoch == self.epoch and trainer.fit_loop.batch_idx == self.batch
        if here and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


def stopped(monkeypatch: pytest.MonkeyPatch, config: Any, *at: Any) -> Run:
    build = training_fit.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(training_fit, "build_callbacks", lambda *a: [Signal(*at), *build(*a)])
        with pytest.raises(Interrupted), interruptible():
            train(config)
    return Run(run_directory(resolved(config)))


def assert_same_weights(one: Run, other: Run) -> None:
    expected, got = load_tensors(one.weights), load_tensors(other.weights)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    assert one.manifest.kept_epoch == other.manifest.kept_epoch
    assert one.manifest.best_val_accuracy == other.manifest.best_val_accuracy


IMAGES = ("data.augment.crop_padding=1", "data.augment.cutmix=1.0", "model.dropout=0.1")


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ((), ("on_train_batch_start", 1, 1, signal.SIGTERM)),
        ((*IMAGES, "recipe.ema_decay=0.9"), ("on_train_batch_end", 2, 0, signal.SIGINT)),
        ((*IMAGES, "recipe.keep=last"), ("on_train_batch_start", 0, 3, signal.SIGTERM)),
        (IMAGES, ("on_validation_batch_end", 1, 3, signal.SIGTERM)),
        ((*IMAGES, "recipe.ema_decay=0.9"), ("on_train_epoch_end", 2, 3, signal.SIGTERM)),
    ],
    ids=["mid", "ema", "last batch", "validation", "last epoch"],
)
def test_stopped_run_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], at: Any
) -> None:
    seldom = "callbacks.checkpoint_seconds=1000"
    whole = train(train_config(tmp_path / "whole", *options))
    config = train_config(tmp_path / "parts", *options, seldom)
    run = stopped(monkeypatch, config, *at)
    assert run.manifest.status == "interrupted"
    assert run.manifest.error == f"stopped by {at[-1].name}"
    assert run.checkpoint.is_file(), "saved before the process ends"
    again = train(config)
    assert again.manifest.resumed_from == "last.ckpt"
    assert again.manifest.earlier_attempts[0].status == "interrupted"
    assert_same_weights(whole, again)


def test_stop_in_the_middle_of_an_epoch_saves_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(tmp_path, "callbacks.checkpoint_seconds=1000")
    run = stopped(monkeypatch, config, "on_train_batch_start", 1, 2, signal.SIGTERM)
    checkpoint = load_checkpoint(run.checkpoint)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 4 + 3)
    (place,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert place == {"epoch": 1, "batches": 3}


def test_stopped_masked_language_model_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compiled kernels depend on the shape of the first batch, which is another after a resume.
    plain = ("model.dropout=0.1", "trainer.compile=false")
    options = ("task=wikitext", "experiment=wikitext_excerpt", *plain)
    tiny = (*TINY_TEXT, "data.vocab_size=400", "data.mask_share=0.3")
    whole = train(train_config(tmp_path / "whole", *options, tiny=tiny))
    config = train_config(tmp_path / "parts", *options, tiny=tiny)
    stopped(monkeypatch, config, "on_train_batch_start", 1, 2, signal.SIGTERM)
    assert_same_weights(whole, train(config))
