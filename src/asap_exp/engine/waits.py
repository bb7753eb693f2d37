"""The share of a training's time in which it waits for data."""

import time

import lightning as L
import torch


class Waits(L.Callback):
    """Callback that logs, per epoch, the share of time in which training waits as `wait/data`.

    It waits while the host prepares the next batch or waits for it, and the device has nothing to
    do. A GPU is asked at the end of such a time whether it has done all that it was given: if it
    has not, the host was ahead of it, and nothing was lost. Validations do not count.
    """

    def __init__(self) -> None:
        self.waiting = self.working = 0.0
        self.since = 0.0
        self.step: torch.cuda.Event | None = None
        """The end of the last step, on a GPU."""

    def on_train_epoch_start(self, *_: object) -> None:
        self.waiting = self.working = 0.0
        self.since = time.monotonic()

    def on_train_batch_start(self, *_: object) -> None:
        now = time.monotonic()
        if self.step is None or self.step.query():
            self.waiting += now - self.since
        else:
            self.working += now - self.since
        self.since = now

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        now = time.monotonic()
        self.working += now - self.since
        self.since = now
        if trainer.strategy.root_device.type == "cuda":
            self.step = torch.cuda.Event()
            self.step.record()

    def on_validation_end(self, *_: object) -> None:
        self.since = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.working:  # an epoch whose every step was made before a resume has none
            pl_module.log("wait/data", self.waiting / (self.waiting + self.working))
