"""The share of a training's time in which it waits for data."""

import time

import lightning as L


class Waits(L.Callback):
    """Callback that logs, per epoch, the share of time between steps as `wait/data`.

    It is time in which the host prepares the next batch or waits for it, and gives the device no
    work; the device may still be busy with what it was given. Validations do not count.
    """

    def __init__(self) -> None:
        self.waiting = self.working = 0.0
        self.since = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        self.waiting = self.working = 0.0
        self.since = time.monotonic()

    def on_train_batch_start(self, *_: object) -> None:
        now = time.monotonic()
        self.waiting += now - self.since
        self.since = now

    def on_train_batch_end(self, *_: object) -> None:
        now = time.monotonic()
        self.working += now - self.since
        self.since = now

    def on_validation_end(self, *_: object) -> None:
        self.since = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.working:  # an epoch whose every step was made before a resume has none
            pl_module.log("wait/data", self.waiting / (self.waiting + self.working))
