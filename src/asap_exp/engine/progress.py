"""What a training run shows: a rich bar on a terminal, a line an epoch elsewhere."""

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

SHOWN = {"train/loss_epoch": "loss", "val/accuracy": "val acc", "val/perplexity": "val ppl"}


def progress_callback() -> Callback:
    return TerminalBar(leave=False) if Console().is_terminal else EpochLines()


def shown_metrics(trainer: L.Trainer) -> dict[str, str]:
    """The few numbers worth watching, under short names."""
    metrics = trainer.callback_metrics
    return {short: f"{metrics[name]:.4f}" for name, short in SHOWN.items() if name in metrics}


class TerminalBar(RichProgressBar):
    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        return shown_metrics(trainer)


class EpochLines(Callback):
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        numbers = ", ".join(f"{name} {value}" for name, value in shown_metrics(trainer).items())
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {numbers}", flush=True)
