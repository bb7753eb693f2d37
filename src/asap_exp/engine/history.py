"""Metrics of every epoch, in memory and in checkpoints, since a log on disk may lose rows."""

from typing import Any

import lightning as L

Curves = list[dict[str, float]]


class History(L.Callback):
    """Callback that collects, per epoch, the training and validation metrics."""

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}

    @property
    def curves(self) -> Curves:
        """One row per epoch, as in a record."""
        return [{"epoch": epoch, **self.epochs[epoch]} for epoch in sorted(self.epochs)]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._add(trainer, "val/", "plan/")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._add(trainer, "train/")

    def _add(self, trainer: L.Trainer, *kinds: str) -> None:
        """Store the metrics of these `kinds`; others may still hold an earlier epoch's values."""
        row = self.epochs.setdefault(trainer.current_epoch, {})
        for name, value in trainer.callback_metrics.items():
            if name.startswith(kinds) and not name.endswith("_step"):
                row[name] = float(value)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = {int(epoch): row for epoch, row in state_dict["epochs"].items()}
