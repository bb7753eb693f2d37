"""Coarse duals in a calibration: as a feature of the map, or in its place where nothing is fitted.

A calibration without steps fits nothing: `attention=coarse` takes the place of the layers, and the
artifact holds its options and no tensor.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from asap_exp.attention import (
    Attention,
    SinkhornAttention,
    attention_layers,
    build_attention,
    check_fills_grid,
    warn_if_all,
)
from asap_exp.attention.swapping import named
from asap_exp.calibration.config import CalibrationConfig, CoarseKeys, recipe_without_fit
from asap_exp.core.config.fields import COARSE_GRIDS
from asap_exp.core.errors import UserError
from asap_exp.ops import CoarseSettings


def coarse_settings(config: CalibrationConfig, num_iters: int) -> CoarseSettings | None:
    """Return the settings of the feature for a teacher of `num_iters` updates; None without it."""
    keys = config.coarse
    if keys.tokens is None:
        return None
    return CoarseSettings(
        keys.tokens,
        keys.choice,
        keys.weights,
        num_iters if keys.num_iters is None else keys.num_iters,
        keys.seed,
        keys.grid_width,
    )


def coarse_attention(
    teacher: SinkhornAttention, keys: CoarseKeys, *, one_pass: bool, backend: str = "auto"
) -> Attention:
    """Build the coarse attention in a teacher's place, by default with its number of updates.

    UserError if an option is not allowed.
    """
    return build_attention(
        {
            "name": "coarse",
            "tokens": keys.tokens,
            "subset": keys.choice,
            "weights": keys.weights,
            "seed": keys.seed,
            "grid_width": keys.grid_width,
            "one_pass": one_pass,
            "num_iters": teacher.num_iters if keys.num_iters is None else keys.num_iters,
            "eps": teacher.eps,
            "backend": backend,
        }
    )


def coarse_layers(
    net: nn.Module, paths: Sequence[str], keys: CoarseKeys, *, one_pass: bool, backend: str = "auto"
) -> dict[str, Attention]:
    """Return the coarse attention of each layer at `paths`.

    UserError for an attention whose updates are not those of Sinkhorn.
    """
    layers, attends = attention_layers(net), {}
    for path in paths:
        teacher = layers[path].attend
        assert isinstance(teacher, SinkhornAttention), "only such layers are compiled"
        if teacher.name != SinkhornAttention.name:
            raise UserError(
                f"the layer at {named(path)} has {teacher.name} attention, whose updates are not "
                "those of sinkhorn; coarse duals without a fit take the place of sinkhorn alone. "
                "Fit a map, or choose other layers"
            )
        attends[path] = coarse_attention(teacher, keys, one_pass=one_pass, backend=backend)
    return attends


def check_tokens(
    keys: CoarseKeys, tokens: int | None, asked_by: str = "calibration.coarse.tokens"
) -> None:
    """Raise UserError for a grid that is not the model's; warn if all tokens are taken.

    `tokens` is their number in every image, None for texts. `asked_by` is the key that gave the
    size of the subset.
    """
    if keys.tokens is None:
        return
    if keys.choice in COARSE_GRIDS:
        check_fills_grid(keys.choice, tokens, keys.grid_width, "calibration.coarse.{}", "choice")
    warn_if_all(tokens, keys.tokens, asked_by)


def identity_without_fit(keys: CoarseKeys, form: str) -> dict[str, Any]:
    """Describe, for an artifact, how coarse duals without a fit were made."""
    recipe = recipe_without_fit(keys, form)
    return {
        **{key: recipe[key] for key in ("slices", "query_features", "refine")},
        "dtype": "float32",
        "calibration": recipe,
    }
