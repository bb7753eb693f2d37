"""Checkpoints that survive crashes, contain no code, and record their configuration."""

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

from asap_exp.core.agreement import largest, mean, of_all, of_first
from asap_exp.core.errors import UserError
from asap_exp.core.files import check_readable, write_atomically
from asap_exp.core.interruption import Request
from asap_exp.core.runs import Run, describe_differences
from asap_exp.data.loader import epoch_seed
from asap_exp.engine.module import Classifier, loader_of

IDENTITY, EPOCH_STATE = "asap_exp_identity", "asap_exp_epoch"


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoint files written atomically and loaded as tensors and plain values only."""

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
    """Load a checkpoint onto the CPU without running any code in it.

    Raises UserError if it is missing or damaged.
    """
    if not path.exists() or path.is_dir():
        what = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        run = path if Run(path).checkpoint.is_file() else Path("RUN")
        raise UserError(
            f"resume={path} {what}; give the file of a run of this very configuration, "
            f"resume={Run(run).checkpoint}, or resume=auto, which finds it by itself, or "
            "resume=never to start again"
        )
    check_readable(path)
    try:
        check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} is damaged or not from this project and was not loaded "
            f"({type(error).__name__}). Continue from another one with resume=PATH, "
            "or start again with resume=never"
        ) from error


def check_sums(path: Path) -> None:
    """Raise BadZipFile if a part of the file does not match its checksum.

    PyTorch writes the checksums but does not verify them.
    """
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")


class StampIdentity(L.Callback):
    """Callback that writes the run's identity into every checkpoint."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[IDENTITY] = self.identity


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint belongs to another configuration, and say what differs."""
    saved = load_checkpoint(path).get(IDENTITY)
    if saved is None:
        raise UserError(
            f"{path} is not a checkpoint of this project: it holds no configuration; choose "
            "another one with resume=PATH, or start again with resume=never"
        )
    if saved != identity and saved | {"data_content": None} == identity | {"data_content": None}:
        raise UserError(
            f"{path} was trained on data other than what is found now (data_content differs):\n"
            f"{describe_differences(saved, identity)}\nSet data.root=FOLDER (data.path=PLACE for "
            "your own data) to where that data is, or start again with resume=never"
        )
    if saved != identity:
        raise UserError(
            f"{path} has another configuration:\n{describe_differences(saved, identity)}\n"
            "Resume it with its own configuration, or start this one with resume=never"
        )


class LastCheckpoint(Checkpoint):
    """Callback that saves to `path` after the last epoch, and at most once in `seconds` before.

    The interval matters because an epoch can be shorter than the time to write its weights. When a
    signal asks the training to stop, it saves at once and raises Interrupted: after the current
    update, with the position in the epoch and the state of every generator; or, after the last step
    of the epoch, once its validation is done. All ranks save and stop at the same step, whichever
    of them a signal reaches.
    """

    def __init__(self, path: Path, *, seconds: float, stop: Request) -> None:
        self.path, self.seconds, self.stop = path, seconds, stop
        self.saved = time.monotonic()
        self.weights: dict[str, Tensor] = {}
        """Weights of the last checkpoint that was saved or loaded."""
        self.epoch = -1
        """Epoch of these weights."""
        self.resumed: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.listen()  # Lightning has just installed its own handler
        if self.resumed is None:
            return
        # Saved after the last epoch, but stopped before the weights were exported.
        trainer.should_stop = bool(self.resumed.get("stopped"))
        if trainer.fit_loop.restarted_mid_epoch:
            # Lightning loses the position if the length of the epoch was queried earlier.
            loader_of(trainer.train_dataloader).load_state_dict(self.resumed["place"])
            if isinstance(pl_module, Classifier):
                pl_module.epoch_losses = list(self.resumed["losses"].to(pl_module.device))
            rank, states = trainer.global_rank, self.resumed["generators"]
            of_ranks = [states, *self.resumed.get("generators_of_others", ())]
            if rank < len(of_ranks):
                set_generator_states(of_ranks[rank])
            elif isinstance(pl_module, Classifier):  # saved by fewer ranks
                torch.manual_seed(epoch_seed(pl_module.seed, trainer.current_epoch, rank))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # so that this epoch is validated too
        stepped = (index + 1) % trainer.accumulate_grad_batches == 0
        if stepped and not trainer.is_last_batch and self._asked():
            self._save(trainer)
            # Lightning logs after these hooks, and the checkpoint counts the step as done.
            trainer._logger_connector.update_train_step_metrics()
            self.stop.obey()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        due = time.monotonic() - self.saved >= self.seconds
        asked, due = self._asked(), of_first(due)
        if asked or last or due:
            self._save(trainer)
            self.saved = time.monotonic()
        if asked:  # one that came meanwhile, perhaps to another rank, has its turn at the next step
            trainer.fit_loop.epoch_loop._batches_that_stepped -= 1  # as Lightning does to log
            trainer._logger_connector.update_train_epoch_metrics()
            self.stop.obey()

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.stop.saved = self.path

    def _asked(self) -> bool:
        """Return whether a signal has asked any rank to stop; then it has asked all."""
        self.stop.signal = largest(self.stop.signal or 0) or None
        return self.stop.signal is not None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.weights, self.epoch = checkpoint["state_dict"], checkpoint["epoch"]
        losses = pl_module.epoch_losses if isinstance(pl_module, Classifier) else []
        generators, *others = of_all(generator_states())
        checkpoint[EPOCH_STATE] = {
            "place": loader_of(trainer.train_dataloader).state_dict(),
            "losses": mean(torch.stack(losses).cpu()) if losses else torch.empty(0),
            "generators": generators,
            "generators_of_others": others,
            "stopped": trainer.should_stop,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.weights, self.epoch = checkpoint["state_dict"], checkpoint["epoch"]
        self.resumed = checkpoint.get(EPOCH_STATE)


def generator_states() -> dict[str, Any]:
    """Return the state of every generator a training step may draw from, as plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
    }


def set_generator_states(states: dict[str, Any]) -> None:
    """Restore what `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])


class BestWeights(L.Callback):
    """Callback that keeps the weights of the best validated epoch, here and in every checkpoint.

    It must come before a callback that averages weights, which restores the raw ones after
    validation.
    """

    def __init__(self, name: str, *, smallest: bool) -> None:
        """Rank epochs by the logged number `name`; the best is the smallest or the largest."""
        self.name, self.smallest = name, smallest
        self.score: float | None = None
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = float(trainer.callback_metrics[self.name])
        if self.better(score):
            self.score, self.epoch = score, trainer.current_epoch
            weights = trainer.strategy.lightning_module_state_dict()
            self.weights = {name: weight.detach().clone() for name, weight in weights.items()}

    def better(self, score: float) -> bool:
        """Return True if `score` beats the best so far; NaN never does, not even as the first."""
        if self.score is None:
            return not math.isnan(score)
        return score < self.score if self.smallest else score > self.score

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.weights = state_dict["weights"]
