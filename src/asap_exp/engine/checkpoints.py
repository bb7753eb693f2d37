"""Checkpoints that survive a crash, hold no code, and know which configuration they belong to."""

import math
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from asap_exp.core.errors import UserError
from asap_exp.core.files import check_readable, write_atomically
from asap_exp.core.interruption import Request
from asap_exp.core.runs import describe_differences
from asap_exp.data.loader import BatchLoader
from asap_exp.engine.module import Classifier

IDENTITY, EPOCH_STATE = "asap_exp_identity", "asap_exp_epoch"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside and renames; loads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU; no code in it is run. UserError where missing or damaged."""
    if not path.exists():
        raise UserError(f"the checkpoint {path} does not exist")
    check_readable(path)
    try:
        check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} is damaged or not one of ours and was not loaded "
            f"({type(error).__name__}). Continue from another one with resume=PATH, "
            "or start again with resume=never"
        ) from error


def check_sums(path: Path) -> None:
    """BadZipFile where a part of the file does not have the checksum that it was saved with.

    PyTorch writes them and does not read them.
    """
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} does not have its checksum")


class StampIdentity(L.Callback):
    """Writes the run's identity into every checkpoint."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[IDENTITY] = self.identity


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """Refuses a checkpoint of another configuration (task, width, T, ...) and says what differs."""
    saved = load_checkpoint(path).get(IDENTITY)
    if saved is None:
        raise UserError(f"{path} is no checkpoint of this project: it carries no configuration")
    if saved != identity and saved | {"data_content": None} == identity | {"data_content": None}:
        raise UserError(
            f"{path} was trained on other data than is found now (its data_content differs):\n"
            f"{describe_differences(saved, identity)}\nGive the folder of that data with "
            "data.root=FOLDER, or start again with resume=never"
        )
    if saved != identity:
        raise UserError(
            f"{path} is of another configuration:\n{describe_differences(saved, identity)}\n"
            "Resume it with its own configuration, or start this one with resume=never"
        )


class LastCheckpoint(Checkpoint):
    """Saves to `path` at the end of an epoch, at most once in `seconds`, and after the last epoch.

    Epochs of a second are shorter than the writing of their weights. Where a signal asks the
    training to stop, it saves at once and raises Interrupted: after the step, with the place in the
    epoch and the state of every generator; where no step of the epoch is left, after its
    validation.
    """

    def __init__(self, path: Path, *, seconds: float, stop: Request) -> None:
        self.path, self.seconds, self.stop = path, seconds, stop
        self.saved = time.monotonic()
        self.weights: dict[str, Tensor] = {}
        """Those of the last checkpoint that was saved or loaded, and its epoch."""
        self.epoch = -1
        self.resumed: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.stop.listen()  # Lightning has put a handler of its own before
        if self.resumed is not None and trainer.fit_loop.restarted_mid_epoch:
            # Lightning drops the place where the length of an epoch was asked for before.
            loader_of(trainer).load_state_dict(self.resumed["place"])
            pl_module.epoch_losses = list(self.resumed["losses"].to(pl_module.device))
            set_generator_states(self.resumed["generators"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        if self.stop.signal is not None and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
            self.stop.obey()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = time.monotonic() - self.saved >= self.seconds
        if last or due or self.stop.signal is not None:
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()
        self.stop.obey()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, Classifier)
        self.weights, self.epoch = checkpoint["state_dict"], checkpoint["epoch"]
        losses = torch.stack(pl_module.epoch_losses).cpu()
        checkpoint[EPOCH_STATE] = {
            "place": loader_of(trainer).state_dict(),
            "losses": losses,
            "generators": generator_states(),
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.weights, self.epoch = checkpoint["state_dict"], checkpoint["epoch"]
        self.resumed = checkpoint.get(EPOCH_STATE)


def loader_of(trainer: L.Trainer) -> BatchLoader:
    loader = trainer.train_dataloader
    assert isinstance(loader, BatchLoader)
    return loader


def generator_states() -> dict[str, Any]:
    """Of every generator that a training step may draw from, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
    }


def set_generator_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])


class BestWeights(L.Callback):
    """The weights of the epoch with the best validation score, kept here and in every checkpoint.

    Comes before a callback that averages weights: that puts the raw ones back after a validation.
    """

    def __init__(self, name: str, *, smallest: bool) -> None:
        """By the logged number `name`: the smallest is the best, or the largest."""
        self.name, self.smallest = name, smallest
        self.score: float | None = None
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = float(trainer.callback_metrics[self.name])
        if self.better(score):
            self.score, self.epoch = score, trainer.current_epoch
            self.weights = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}

    def better(self, score: float) -> bool:
        """Than the best so far. A NaN never is, not even the first."""
        if self.score is None:
            return not math.isnan(score)
        return score < self.score if self.smallest else score > self.score

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.weights = state_dict["weights"]
