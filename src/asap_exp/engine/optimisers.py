"""Optimisers, learning-rate schedules, and the parameters that are not decayed."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from asap_exp.core.config import RecipeConfig, TextRecipeConfig
from asap_exp.core.errors import UserError


def build_optimizer(net: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """Build the optimiser of `recipe` for the weights of `net`, where they are.

    Raises UserError if it refuses its options.
    """
    options = dict(recipe.optimizer_options or {})
    fused = any(weight.is_cuda for weight in net.parameters())
    try:
        if recipe.optimizer == "adamw":
            return clippable(adamw(decay_groups(net, recipe), recipe.lr, fused=fused, **options))
        optimizer = create_optimizer_v2(
            net,
            recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            param_group_fn=lambda model: decay_groups(model, recipe),
            **options,
        )
        return clippable(optimizer)
    except (TypeError, ValueError, AssertionError, ImportError, RuntimeError) as error:
        raise UserError(
            f"recipe.optimizer={recipe.optimizer} with recipe.optimizer_options={options}: {error}"
        ) from error


def decay_groups(net: nn.Module, recipe: RecipeConfig) -> list[dict]:
    """Return the parameter groups: vectors, and what `recipe.no_decay` adds, are not decayed."""
    named = getattr(net, "no_weight_decay", None) if recipe.no_decay == "timm" else None
    return param_groups_weight_decay(
        net,
        weight_decay=recipe.weight_decay,
        no_weight_decay_list=() if named is None else tuple(named()),
    )


def adamw(groups: list[dict], lr: float, *, fused: bool, **options: Any) -> torch.optim.AdamW:
    """Build AdamW; `fused` updates all weights in a few kernels, at a third of the host time."""
    return torch.optim.AdamW(groups, lr=lr, **{"fused": fused or None, **options})


def clippable(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser, whose gradients Lightning may clip under mixed precision.

    A fused optimiser announces that it unscales float16 gradients itself, and Lightning then
    refuses to clip them. Without that flag they are unscaled first, as for other optimisers.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, recipe: RecipeConfig, *, steps: int
) -> LRScheduler | Scheduler:
    """Build the schedule of `recipe` over `steps` updates; timm's are for `step_update`.

    Raises UserError if timm refuses its options.
    """
    final_lr = recipe.lr * recipe.final_lr_ratio
    drop = recipe.lr_drop_epoch if isinstance(recipe, TextRecipeConfig) else None
    if drop is not None:
        milestone = round(steps * drop / recipe.epochs)
        return MultiStepLR(optimizer, [milestone], gamma=recipe.final_lr_ratio)
    warmup_steps = round(steps * recipe.warmup_epochs / recipe.epochs)
    if recipe.schedule == "cosine":
        return warmup_cosine(optimizer, steps=steps, warmup_steps=warmup_steps, final_lr=final_lr)
    options: dict[str, Any] = {
        "num_epochs": recipe.epochs,
        "warmup_epochs": recipe.warmup_epochs,
        "warmup_lr": recipe.lr / (warmup_steps + 1),
        "min_lr": final_lr,
        "step_on_epochs": False,
        "updates_per_epoch": max(round(steps / recipe.epochs), 1),
    }
    if recipe.schedule == "poly":
        options["decay_rate"] = 1.0  # timm's name of the power: a straight line
    try:
        schedule, _ = create_scheduler_v2(
            optimizer, recipe.schedule, **{**options, **(recipe.schedule_options or {})}
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"recipe.schedule={recipe.schedule} with recipe.schedule_options="
            f"{recipe.schedule_options}: {error}"
        ) from error
    assert isinstance(schedule, Scheduler)
    return schedule


def warmup_cosine(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup_steps: int, final_lr: float
) -> LRScheduler:
    """Build a linear warm-up over `warmup_steps`, then a cosine decay to `final_lr` at `steps`."""
    cosine = CosineAnnealingLR(optimizer, T_max=max(steps - warmup_steps, 1), eta_min=final_lr)
    if warmup_steps == 0:
        return cosine
    rise = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup_steps])
