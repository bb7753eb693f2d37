"""Loggers of trackers that continue the curves of a run, and log no point of them twice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from asap_exp.core.config import LoggerConfig
from asap_exp.core.training_log import logged_points

Point = tuple[int, dict[str, float]]
"""Step, and what was logged at it by name."""


class Continued(Logger):
    """Logger of an attempt that may continue earlier ones.

    A killed attempt may have logged steps beyond its checkpoint, which are trained again. Where the
    tracker holds the earlier points, none of them is logged a second time; where it does not, as in
    wandb's file of a new offline attempt, those before the checkpoint are logged into it first.
    """

    held: set[tuple[str, int]] = set()  # noqa: RUF012 (replaced, never changed)
    """Names and steps that the tracker holds."""

    @property
    def continues(self) -> bool:
        """True if the tracker holds what earlier attempts logged."""
        raise NotImplementedError

    def continue_from(self, earlier: Sequence[Point], start: int) -> None:
        """Take over the `earlier` points of a run that is continued at the step `start`."""
        if not self.continues:
            earlier = [(step, values) for step, values in earlier if step < start]
            for step, values in earlier:
                self.log_metrics(values, step)
        self.held = {(name, step) for step, values in earlier for name in values}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics that the tracker does not hold yet."""
        new = {name: value for name, value in metrics.items() if (name, step) not in self.held}
        if new.keys() - {"epoch"}:
            epoch = {"epoch": metrics["epoch"]} if "epoch" in metrics else {}
            super().log_metrics({**new, **epoch}, step)  # type: ignore[safe-super]

    def log_picture(self, name: str, picture: np.ndarray, step: int, epoch: int) -> None:
        """Log a picture `[height, width, 3]` of bytes."""
        raise NotImplementedError


class WandbLog(Continued, WandbLogger):
    """wandb's logger."""

    def log_picture(self, name: str, picture: np.ndarray, step: int, epoch: int) -> None:
        image = wandb_image(picture, f"epoch {epoch + 1}")
        self.experiment.log({name: image, "trainer/global_step": step, "epoch": epoch})

    @property
    def continues(self) -> bool:
        return bool(self.experiment.resumed)


class TensorBoardLog(Continued, TensorBoardLogger):
    """TensorBoard's logger, whose attempts write to one folder."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, name="tensorboard", version="")
        self._continues = any(Path(self.log_dir).glob("events.*"))

    @property
    def continues(self) -> bool:
        return self._continues

    def log_picture(self, name: str, picture: np.ndarray, step: int, epoch: int) -> None:
        self.experiment.add_image(name, picture, step, dataformats="HWC")


def wandb_image(picture: np.ndarray, caption: str) -> Any:
    import wandb

    return wandb.Image(picture, caption=caption)


class ContinueCurves(L.Callback):
    """Callback that hands every tracker the points that earlier attempts at `run` logged."""

    def __init__(self, run: Path) -> None:
        self.earlier = logged_points(run)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, Continued):
                logger.continue_from(self.earlier, trainer.global_step)


def tracker_loggers(config: LoggerConfig, run: Path, tracker: Any) -> list[Logger]:
    """Return the loggers of the trackers that were chosen; `tracker` is wandb's run or None."""
    return [
        *([] if tracker is None else [WandbLog(experiment=tracker)]),
        *([TensorBoardLog(run)] if config.tensorboard else []),
    ]
