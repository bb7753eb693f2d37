"""Initialisation from another run's weights, without its head."""

from dataclasses import replace
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run, named_run
from asap_exp.models import load_weights

HEAD = "head."
"""Prefix of the weights that belong to one task."""

POSITIONS = "pos_embed"
"""timm's name of the position embedding of image patches."""


def initial_run(config: TrainConfig) -> Run | None:
    """Return the finished run that `init_from` names by directory or run name, or None.

    Raises UserError if that run is unfinished or has another kind of model.
    """
    if config.init_from is None:
        return None
    run = named_run(config.paths, config.init_from)
    if run.config.model.name != config.model.name:
        raise UserError(
            f"init_from={config.init_from} is a model of another kind: "
            f"{run.config.model.name}, not {config.model.name}"
        )
    if not run.finished:
        raise UserError(
            f"init_from={config.init_from} is not a finished run; finish it with the command in "
            "its manifest.json"
        )
    return run


def with_initial(config: TrainConfig, run: Run | None) -> TrainConfig:
    """Return `config` with the run's name in place of a path, so that it is machine-independent."""
    return config if run is None else replace(config, init_from=run.name)


def initialise(net: nn.Module, run: Run) -> None:
    """Copy every weight of `run` except its head; raise UserError if one is missing or differs.

    The position embedding of a ViT is interpolated if its images have another number of patches.
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
    """Return what records say about the run that the weights came from."""
    manifest = run.manifest
    return {
        "run": run.name,
        "teacher_sha256": manifest.teacher_sha256,
        "task": str(run.config.task.name),
        "attention": run.config.attention["name"],
        "recipe_hash": manifest.recipe_hash,
    }


def shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    """Return the shape of `tensor`, or None."""
    return None if tensor is None else tuple(tensor.shape)
