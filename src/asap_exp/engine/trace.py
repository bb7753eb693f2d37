"""Trace of a few training steps: what host and device did when, and how long the device waited."""

from pathlib import Path
from typing import Any

import lightning as L
from torch.profiler import ProfilerActivity, profile, schedule

from asap_exp.core.console import say, shown
from asap_exp.core.files import write_text
from asap_exp.engine.step_timer import kernel_times, wait

SKIPPED, WARM_UP, TRACED = 20, 2, 5
"""Steps before the trace, of which the first ones compile or record; its warm-up; its steps."""
ROWS = 40
"""Rows of the table of operators."""


class Trace(L.Callback):
    """Callback that writes trace.json, for Perfetto, and operators.txt of some steps of an epoch.

    On a GPU it logs the share of their time in which no kernel ran as `wait/device`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._profile: profile | None = None
        self._done = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._done or not trainer.is_global_zero:
            return
        self._done = True
        batches = trainer.num_training_batches
        traced = int(min(TRACED, max(batches - 1, 1)))  # the first step is not like the others
        warm_up = int(min(WARM_UP, batches - traced))
        skipped = int(min(SKIPPED, batches - traced - warm_up))
        cuda = pl_module.device.type == "cuda"
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])],
            schedule=schedule(skip_first=skipped, wait=0, warmup=warm_up, active=traced, repeat=1),
            acc_events=True,
        )
        self._left = skipped + warm_up + traced
        self._profile.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._profile is None:
            return
        self._left -= 1
        if self._left:
            self._profile.step()
        else:
            self._finish(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop and write the trace, if one is under way."""
        if self._profile is None:
            return
        profiled, self._profile = self._profile, None
        wait(pl_module.device.type == "cuda")
        profiled.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(self.folder / "trace.json"))
        table = profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)
        write_text(self.folder / "operators.txt", table + "\n")
        busy, seconds, _ = kernel_times(profiled)
        if seconds:
            for logger in trainer.loggers:
                logger.log_metrics(
                    {"wait/device": 1 - busy / seconds, "epoch": trainer.current_epoch},
                    step=trainer.global_step - 1,
                )
        say(f"Trace: {shown(self.folder / 'trace.json')}, to be opened in https://ui.perfetto.dev")
