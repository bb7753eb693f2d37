"""Progress of a training run: a rich bar on a terminal, one line per epoch elsewhere."""

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

from asap_exp.core.console import say

SHOWN = {"train/loss_epoch": "loss", "val/accuracy": "val acc", "val/perplexity": "val ppl"}


def progress_callback() -> Callback:
    """Return the bar for a terminal, or the callback that prints lines."""
    return TerminalBar(leave=False) if Console().is_terminal else EpochLines()


def shown_metrics(trainer: L.Trainer) -> dict[str, str]:
    """Return the few metrics worth watching, under short names."""
    metrics = trainer.callback_metrics
    return {short: f"{metrics[name]:.4f}" for name, short in SHOWN.items() if name in metrics}


class TerminalBar(RichProgressBar):
    """Progress bar with the metrics of `shown_metrics`."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        return shown_metrics(trainer)


class EpochLines(Callback):
    """Callback that prints one line per epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        numbers = ", ".join(f"{name} {value}" for name, value in shown_metrics(trainer).items())
        say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {numbers}")
