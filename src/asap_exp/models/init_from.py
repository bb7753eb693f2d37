"""Weights to start from: those of another run, all but its head's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run
from asap_exp.models import load_weights

HEAD = "head."
"""The weights below this name are a task's own."""

POSITIONS = "pos_embed"
"""timm's name of what is added to the patches of an image."""


def initial_run(config: TrainConfig) -> Run | None:
    """The finished run that `init_from` names, by its directory or by its name below the runs."""
    if config.init_from is None:
        return None
    named = config.paths.runs / config.init_from
    run = Run(named if named.is_dir() else Path(config.init_from))
    if run.config.model.name != config.model.name:
        raise UserError(
            f"init_from={config.init_from} is a model of another kind: "
            f"{run.config.model.name}, not {config.model.name}"
        )
    if not run.finished:
        raise UserError(
            f"init_from={config.init_from} is no finished run; finish it with the command in its "
            "manifest.json"
        )
    return run


def with_initial(config: TrainConfig, run: Run | None) -> TrainConfig:
    """`config` with the run's name in place of a path: the same on every machine."""
    return config if run is None else replace(config, init_from=run.name)


def initialise(net: nn.Module, run: Run) -> None:
    """Copies every weight of `run` but its head's; UserError where one is missing or differs.

    The positions of a ViT are interpolated where its images have another number of patches.
    """
    weights = {k: v for k, v in load_weights(run).items() if not k.startswith(HEAD)}
    if isinstance(net, VisionTransformer):
        weights[POSITIONS] = resample_abs_pos_embed(
            weights[POSITIONS], list(net.patch_embed.grid_size), num_prefix_tokens=0
        )
    own = {k: v for k, v in net.state_dict().items() if not k.startswith(HEAD)}
    differences = [
        f"  {name}: there {shape(weights.get(name))}, here {shape(own.get(name))}"
        for name in sorted(weights.keys() | own.keys())
        if shape(weights.get(name)) != shape(own.get(name))
    ]
    if differences:
        raise UserError(
            f"the weights of {run.path} do not fit this model:\n"
            + "\n".join(differences)
            + "\nGive both the same model and data.vocab_size, or leave init_from out"
        )
    net.load_state_dict(weights, strict=False)


def initial_facts(run: Run) -> dict[str, Any]:
    """What a record says of the run that the weights came from."""
    manifest = run.manifest
    return {
        "run": run.name,
        "teacher_sha256": manifest.teacher_sha256,
        "task": str(run.config.task.name),
        "attention": run.config.attention["name"],
        "recipe_hash": manifest.recipe_hash,
    }


def shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
