"""Progress of a training run: one line per finished epoch, and a bar on a terminal."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

from asap_exp.core.agreement import total
from asap_exp.core.console import duration, say
from asap_exp.engine.pace import PaceLine

SHOWN = {
    "train/loss_epoch": ("loss", "{:.4f}", 1),
    "val/accuracy": ("val accuracy", "{:.2f} %", 100),
    "val/perplexity": ("val perplexity", "{:.2f}", 1),
}
"""Metrics worth watching: their short name, format and scale."""


def progress_callbacks() -> list[Callback]:
    """Return the callbacks that print lines and, on a terminal, the bar."""
    return [
        PaceLine(),
        EpochLines(),
        *([TerminalBar(leave=False)] if Console().is_terminal else []),
    ]


def shown_metrics(trainer: L.Trainer) -> dict[str, str]:
    """Return the few metrics worth watching, under short names."""
    metrics = trainer.callback_metrics
    return {
        name: form.format(scale * float(metrics[key]))
        for key, (name, form, scale) in SHOWN.items()
        if key in metrics
    }


class TerminalBar(RichProgressBar):
    """Progress bar of the present epoch, with the loss of its last logged step."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        loss = trainer.callback_metrics.get("train/loss_step")
        if (recorded := getattr(pl_module, "recorded", None)) is not None:
            loss = recorded.last_loss  # that of the metrics would make the host wait
        return {} if loss is None else {"loss": f"{float(loss):.4f}"}

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts from 0, the lines and the summary of a run from 1.
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class EpochLines(Callback):
    """Callback that prints one line per epoch: metrics, its time, its rate, and the time left.

    The rate is that of training alone, without the time in which recorded steps were compiled,
    which has a line of its own. The time left is computed from all epochs of this process,
    validations included.
    """

    def __init__(self) -> None:
        self.samples, self.epochs = 0, 0
        self.start = self.epoch_start = self.resumed = 0.0
        self.training = self.compiling = 0.0

    def on_train_start(self, *_: object) -> None:
        # An epoch that is resumed does not start again.
        self.start = self.epoch_start = self.resumed = time.monotonic()

    def on_train_epoch_start(self, *_: object) -> None:
        self.training, self.resumed = 0.0, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.samples += len(batch[0])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training += time.monotonic() - self.resumed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.resumed = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now, epoch, last = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or 0
        self.epochs += 1
        numbers = [f"{name} {value}" for name, value in shown_metrics(trainer).items()]
        numbers.append(duration(now - self.epoch_start))
        what = getattr(trainer.datamodule, "sample_name", "samples")  # type: ignore[attr-defined]
        # Recorded steps may still run when their batches have ended; by now none does.
        training = self.training + now - self.resumed
        if (recorded := getattr(pl_module, "recorded", None)) is not None:
            compiling, self.compiling = recorded.seconds - self.compiling, recorded.seconds
            training -= compiling
            if compiling > 1:
                say(f"Compiled and recorded {recorded.count} CUDA graphs in {duration(compiling)}")
        self.samples = total(self.samples)
        rate = f" ({self.samples / training:,.0f} {what}/s)" if training > 0 else ""
        left = (now - self.start) / self.epochs * (last - epoch)
        ahead = f", {duration(left)} left" if epoch < last else ""
        say(f"epoch {epoch}/{last}: {', '.join(numbers)}{rate}{ahead}")
        self.epoch_start, self.samples = now, 0
