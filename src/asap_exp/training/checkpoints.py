"""Checkpoints that survive a crash, hold no code, and know which configuration they belong to."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from asap_exp.errors import UserError
from asap_exp.files import check_readable, write_atomically
from asap_exp.runs import describe_differences

IDENTITY = "asap_exp_identity"


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
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} is damaged or not one of ours and was not loaded "
            f"({type(error).__name__}). Continue from another one with resume=PATH, "
            "or start again with resume=never"
        ) from error


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
    if saved != identity:
        raise UserError(
            f"{path} is of another configuration:\n{describe_differences(saved, identity)}\n"
            "Resume it with its own configuration, or start this one with resume=never"
        )


class LastCheckpoint(Checkpoint):
    """Saves to `path` at the end of an epoch, at most once in `seconds`, and after the last epoch.

    Epochs of a second are shorter than the writing of their weights.
    """

    def __init__(self, path: Path, *, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.saved = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if last or time.monotonic() - self.saved >= self.seconds:
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()


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
