"""Arguments of Lightning's Trainer: those passed on, and those that other keys set."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from asap_exp.core.config.fields import (
    MOST_THREADS,
    PRECISIONS,
    Accelerator,
    Count,
    Portion,
    at_least,
    at_most,
    one_of,
)
from asap_exp.core.errors import UserError
from asap_exp.core.ranks import Devices

STRATEGIES = ("auto", "ddp", "fsdp")
"""Ways to train on several devices: auto is ddp."""

EVALUATED = "the test split belongs to `python -m asap_exp.evaluate`, which has max_test_rows"

PASSED_ON = (
    "accumulate_grad_batches",
    "benchmark",
    "detect_anomaly",
    "deterministic",
    "enable_autolog_hparams",
    "enable_model_summary",
    "fast_dev_run",
    "gradient_clip_algorithm",
    "inference_mode",
    "limit_train_batches",
    "log_every_n_steps",
    "max_steps",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "val_check_interval",
)
"""Arguments of Lightning's Trainer whose values are those below `trainer`; null is its default."""

OTHERWISE = {
    "barebones": "a run needs its checkpoints; use callbacks.progress_bar=false and logger=csv",
    "callbacks": "use callbacks.early_stopping or callbacks.extra=[{_target_: MODULE.CLASS}]",
    "check_val_every_n_epoch": "use callbacks.val_every_n_epochs",
    "default_root_dir": "use paths.results",
    "enable_checkpointing": "the last state is always saved; use callbacks.checkpoint_seconds",
    "enable_progress_bar": "use callbacks.progress_bar",
    "gradient_clip_val": "use recipe.clip_norm",
    "limit_predict_batches": EVALUATED,
    "limit_test_batches": EVALUATED,
    "logger": "use logger=csv or logger=both",
    "max_epochs": "use recipe.epochs",
    "model_registry": "weights are kept in the run directory alone",
    "plugins": "it takes objects, which no configuration can hold",
    "sync_batchnorm": "no model here has batch normalisation",
    "use_distributed_sampler": "every batch is split over the devices as it is",
}
"""Arguments of Lightning's Trainer that are no keys below `trainer`, and what to use instead."""

SAME_RESULTS = (
    "accelerator",
    "benchmark",
    "compile",
    "compile_options",
    "cpu_threads",
    "cuda_graphs",
    "detect_anomaly",
    "deterministic",
    "devices",
    "enable_autolog_hparams",
    "enable_model_summary",
    "find_unused_parameters",
    "inference_mode",
    "log_every_n_steps",
    "micro_batch",
    "num_nodes",
    "num_sanity_val_steps",
    "profiler",
    "strategy",
)
"""Keys below `trainer` that do not change what is computed, except for rounding."""


@dataclass
class TrainerConfig:
    accelerator: Accelerator
    precision: Annotated[str, one_of(*PRECISIONS)]
    compile: bool | None
    cpu_threads: Annotated[int | None, at_least(1), at_most(MOST_THREADS)]
    log_every_n_steps: Count
    limit_train_batches: Annotated[int | float | None, Portion()]
    limit_val_batches: Annotated[int | float | None, Portion()]
    micro_batch: Annotated[int | None, at_least(1)] = None
    cuda_graphs: bool | None = None
    compile_options: dict[str, Any] | None = None
    devices: Annotated[int, at_least(1)] = 1
    num_nodes: Annotated[int, at_least(1)] = 1
    strategy: Annotated[str, one_of(*STRATEGIES)] = "auto"
    find_unused_parameters: bool | None = None
    # Passed on to Lightning, whose own default null is
    accumulate_grad_batches: Annotated[int | None, at_least(1)] = None
    benchmark: bool | None = None
    detect_anomaly: bool | None = None
    deterministic: bool | str | None = None
    enable_autolog_hparams: bool | None = None
    enable_model_summary: bool | None = None
    fast_dev_run: Annotated[bool | int | None, at_least(0)] = None
    gradient_clip_algorithm: Annotated[str | None, one_of("norm", "value")] = None
    inference_mode: bool | None = None
    max_steps: Annotated[int | None, at_least(1)] = None
    max_time: str | None = None
    min_epochs: Annotated[int | None, at_least(1)] = None
    min_steps: Annotated[int | None, at_least(1)] = None
    num_sanity_val_steps: Annotated[int | None, at_least(-1)] = None
    overfit_batches: Annotated[int | float | None, Portion()] = None
    profiler: Annotated[str | None, one_of("simple", "advanced", "pytorch")] = None
    reload_dataloaders_every_n_epochs: Annotated[int | None, at_least(0)] = None
    val_check_interval: Annotated[int | float | None, Portion()] = None

    otherwise = OTHERWISE

    def __post_init__(self) -> None:
        self._check_devices()
        if isinstance(self.deterministic, str) and self.deterministic != "warn":
            raise UserError(
                f"trainer.deterministic={self.deterministic} is not allowed; choose one of true, "
                "false, warn"
            )
        if self.max_time is not None and not re.fullmatch(r"\d+(:\d\d){3}", self.max_time):
            raise UserError(
                f"trainer.max_time={self.max_time} is not allowed; it must be DAYS:HH:MM:SS, for "
                "example 00:12:00:00 for half a day"
            )

    @property
    def world(self) -> int:
        """Number of devices in all."""
        return self.devices * self.num_nodes

    @property
    def together(self) -> Devices:
        """Devices that train together."""
        return Devices(self.accelerator, self.devices, self.num_nodes, "trainer.")

    def _check_devices(self) -> None:
        if self.world == 1:
            if self.strategy != "auto":
                raise UserError(
                    f"trainer.strategy={self.strategy} is for several devices; give their number "
                    "with trainer.devices=2, or set trainer.strategy=auto",
                    key="trainer.strategy",
                    value=self.strategy,
                )
            return
        if self.micro_batch is not None:
            raise UserError(
                f"trainer.micro_batch={self.micro_batch} is for one device: {self.world} devices "
                "have a part of each batch already. Set it to null, and take more devices or "
                "trainer.accumulate_grad_batches if a part does not fit"
            )
        if self.strategy == "fsdp" and self.accelerator == "cpu":
            raise UserError(
                "trainer.strategy=fsdp needs GPUs, and trainer.accelerator=cpu has none; set "
                "trainer.strategy=ddp"
            )
