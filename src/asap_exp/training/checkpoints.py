"""Checkpoints that survive a crash, hold no code, and know which configuration they belong to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from asap_exp.errors import UserError
from asap_exp.files import write_atomically
from asap_exp.runs import describe_differences

IDENTITY = "asap_exp_identity"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside and renames; loads tensors and plain values only.

    Lightning remembers the best score of an earlier attempt only if its folder has not moved, so
    the folder in a loaded checkpoint is set to `folder`, where this run's checkpoints lie now.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder

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
        checkpoint = load_checkpoint(Path(path))
        if self.folder is not None:
            relocate(checkpoint, self.folder)
        return checkpoint


def relocate(checkpoint: dict[str, Any], folder: Path) -> None:
    """Points the state of every ModelCheckpoint in `checkpoint` to `folder`."""
    here = folder.resolve()

    def moved(path: str) -> str:
        return str(here / Path(path).name) if path else path

    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and "best_model_path" in state:
            state["dirpath"] = str(here)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = moved(state.get(key, ""))
            state["best_k_models"] = {moved(p): s for p, s in state["best_k_models"].items()}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU; no code in it is run. UserError where missing or damaged."""
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist")
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


@dataclass(frozen=True)
class Criterion:
    """By which logged number, and in which direction, an epoch is the best."""

    name: str
    mode: str


ACCURACY, LOSS = Criterion("val/accuracy", "max"), Criterion("val/loss", "min")


def checkpoint_callbacks(
    folder: Path, *, criterion: Criterion | None, every_n_epochs: int
) -> list[L.Callback]:
    """`last.ckpt` after every epoch; with a `criterion`, `best.ckpt` by it too."""
    checkpoint = partial(
        ModelCheckpoint,
        dirpath=folder.resolve(),
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    last = checkpoint(
        filename="last",
        every_n_epochs=1,
        save_top_k=1,
        save_on_train_epoch_end=True,
    )
    if criterion is None:
        return [last]
    best = checkpoint(
        filename="best",
        monitor=criterion.name,
        mode=criterion.mode,
        every_n_epochs=every_n_epochs,
        save_top_k=1,
        save_on_train_epoch_end=False,
    )
    return [best, last]
