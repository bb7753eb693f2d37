"""How long a training takes by the pace of its first batches, if that is long."""

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from asap_exp.core.console import counted, duration, say
from asap_exp.engine.step_timer import seconds_recording

LONG = 3600.0
"""Seconds of a training from which on it is told how long it takes."""
MEASURED = 10.0
"""Seconds of batches by which that is told."""


class PaceLine(Callback):
    """Callback that prints once, soon after the start, how long a long training takes.

    The first line of an epoch may be hours away. The first batch, which is slower, does not count,
    nor do those in which recorded steps are compiled.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.compiling, self.batches, self.told = 0.0, 0, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if self.told:
            return
        now, compiling = time.monotonic(), seconds_recording(pl_module)
        if self.first is None or compiling != self.compiling:
            self.first, self.compiling, self.batches = now, compiling, 0
            return
        self.batches += 1
        if now - self.first < MEASURED:
            return
        self.told = True
        seconds = (now - self.first) / self.batches * batches_ahead(trainer, index)
        if LONG <= seconds < math.inf:
            say(
                f"At the pace of the first {counted(self.batches, 'batch', 'es')}, this takes "
                f"{duration(seconds)} more on {trainer.strategy.root_device.type}, validation not "
                "counted"
            )


def batches_ahead(trainer: L.Trainer, batch: int) -> float:
    """Return how many batches come after this one of the present epoch."""
    per_epoch = float(trainer.num_training_batches)
    ahead = per_epoch * ((trainer.max_epochs or 0) - trainer.current_epoch) - batch - 1
    if trainer.max_steps >= 0:
        steps = trainer.max_steps - trainer.global_step
        ahead = min(ahead, float(steps * trainer.accumulate_grad_batches))
    return ahead
