"""Learning rates in the log, without a copy to the device that the host would wait for."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor


class LearningRates(LearningRateMonitor):
    """Lightning's monitor of the rates at every logged step, which stay on the host.

    Where all groups have the same rate, it is `lr`; else each has the name that Lightning gives it.

    Lightning's own also puts each into the metrics of callbacks, as a tensor on the device: a copy
    from ordinary memory, for which the host waits until the device has done all it was given.
    """

    def __init__(self) -> None:
        super().__init__("step")

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if (step + 1) % trainer.log_every_n_steps and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        rates = [
            group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups
        ]
        if len(rates) != len(self.lrs):  # a callback has added a group, which Lightning can name
            super().on_train_batch_start(trainer, *args, **kwargs)
            return
        for name, rate in zip(self.lrs, rates, strict=True):
            self.lrs[name].append(rate)
        # The groups that are decayed and those that are not have the same rate.
        same = len(set(rates)) == 1
        found = {"lr": rates[0]} if same else dict(zip(self.lrs, rates, strict=True))
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)
