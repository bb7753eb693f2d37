"""Exponential moving average of the weights, updated without the host waiting."""

from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor


class Averaging(EMAWeightAveraging):
    """Lightning's average, updated in a few kernels after its first update.

    Lightning reads on the device how many updates there were, before every update, and starts
    kernels for each tensor.
    """

    def __init__(self, *, device: torch.device, decay: float) -> None:
        super().__init__(device=device, decay=decay)
        self.decay = decay
        self._begun = False
        self._averages: list[Tensor] = []
        self._weights: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        average = self._average_model
        self._begun = bool(average.n_averaged > 0)
        pairs = zip(
            chain(average.module.parameters(), average.module.buffers()),
            chain(pl_module.parameters(), pl_module.buffers()),
            strict=True,
        )
        floating = [(a.detach(), w.detach()) for a, w in pairs if a.is_floating_point()]
        self._averages, self._weights = (list(each) for each in zip(*floating, strict=True))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any
    ) -> None:
        assert self._average_model is not None
        if trainer.global_step <= self._latest_update_step:
            return  # a batch whose gradients were added up
        if self._begun:
            torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)
            self._average_model.n_averaged += 1
            self._latest_update_step = trainer.global_step
        else:
            super().on_train_batch_end(trainer, pl_module, *rest)
            self._begun = True
