"""Whether the steps of a training are recorded as CUDA graphs, and why not."""

from collections.abc import Sequence
from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from asap_exp.core.config import TrainConfig
from asap_exp.core.console import say
from asap_exp.core.cuda_graph import Recorder
from asap_exp.core.errors import UserError
from asap_exp.engine.module import Classifier
from asap_exp.engine.recording import RecordedTraining

GRADIENT_HOOKS = (
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
"""Hooks of Lightning that are called within a step."""

STEP_METHODS = (
    *GRADIENT_HOOKS,
    "training_step",
    "backward",
    "validation_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
)
"""Methods of a Classifier that a recorded step replaces."""

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that record CUDA graphs themselves."""


def refusal(
    config: TrainConfig,
    module: L.LightningModule,
    device: torch.device,
    callbacks: Sequence[L.Callback],
) -> str | None:
    """Return why the steps of a training cannot be recorded, or None if they can.

    `callbacks` are the user's own.
    """
    if device.type != "cuda":
        return "there is no GPU"
    if config.trainer.world > 1:
        return (
            f"{config.trainer.world} devices exchange their gradients within a step "
            "(trainer.devices)"
        )
    if not isinstance(module, Classifier):
        return f"{type(module).__name__} has a step of its own"
    for name in STEP_METHODS:
        if getattr(type(module), name) is not getattr(Classifier, name):
            return f"{type(module).__name__} has a {name} of its own"
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return f"{type(callback).__name__} adds up the gradients of several batches"
        for hook in GRADIENT_HOOKS:
            if getattr(type(callback), hook) is not getattr(L.Callback, hook):
                return f"{type(callback).__name__}.{hook} is called within a step"
    if config.trainer.precision == "16-mixed":
        return "the scale of float16 losses is chosen by the host (trainer.precision=bf16-mixed)"
    if (config.trainer.accumulate_grad_batches or 1) > 1:
        return "the gradients of several batches are added up (trainer.accumulate_grad_batches)"
    mode = (config.trainer.compile_options or {}).get("mode")
    if mode in GRAPH_MODES and config.trainer.compile is not False:
        return f"torch.compile records graphs of its own (trainer.compile_options.mode={mode})"
    if config.trainer.detect_anomaly:
        return "anomalies are looked for in every operation (trainer.detect_anomaly)"
    if module.micro_batch is not None and config.objective.of_tokens:
        return "masked tokens are counted for each part of a batch (trainer.micro_batch)"
    return None


def set_recording(
    config: TrainConfig,
    module: L.LightningModule,
    device: torch.device,
    callbacks: Sequence[L.Callback],
) -> None:
    """Have the steps of a training recorded where that is possible and not forbidden.

    Raises UserError if trainer.cuda_graphs=true and they cannot be.
    """
    wanted = config.trainer.cuda_graphs
    if wanted is False:
        return
    reason = refusal(config, module, device, callbacks)
    if reason is None:
        assert isinstance(module, Classifier)
        recorder = Recorder(required=wanted is True)
        module.record_steps = partial(RecordedTraining, recorder=recorder)
    elif wanted:
        raise UserError(f"trainer.cuda_graphs=true is not possible: {reason}; set it to null")
    elif device.type == "cuda":
        say(f"Training without CUDA graphs: {reason}")
