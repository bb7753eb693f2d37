"""Compile a model to coarse duals: nothing is fitted, so no batch is read."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from asap_exp.attention import (
    Attention,
    CoarseAttention,
    SinkhornAttention,
    attention_options,
    build_attention,
    swap_attention,
)
from asap_exp.attention.swapping import layers_at
from asap_exp.compiling.arguments import check_has_weights, sinkhorn_paths
from asap_exp.core.console import Progress
from asap_exp.core.errors import UserError

OF_THE_TEACHER = ("num_iters", "eps")
OF_COMPILE = ("seed", "backend")


def compile_coarse(
    model: nn.Module,
    layers: Sequence[str] | None,
    options: Mapping[str, Any],
    *,
    seed: int,
    backend: str,
    progress: bool,
) -> nn.Module:
    """Return a copy of `model` whose Sinkhorn layers are coarse, with their own T and eps.

    `options` are the other options of `CoarseAttention`.
    """
    own = [name for name in attention_options("coarse") if name not in OF_THE_TEACHER + OF_COMPILE]
    for name in options:
        if name not in own:
            raise TypeError(
                f"compile(method='coarse') takes no keyword {name!r}; it takes {', '.join(own)}, "
                "and T and eps from the model"
            )
    check_has_weights(model)
    paths = sinkhorn_paths(model, layers)
    attends: dict[str, Attention] = {}
    for path, layer in layers_at(model, paths).items():
        teacher = layer.attend
        assert isinstance(teacher, SinkhornAttention)
        if teacher.name != SinkhornAttention.name:
            raise UserError(
                f"the layer at {path} has {teacher.name} attention, whose updates are not those of "
                "sinkhorn; method='coarse' takes sinkhorn alone. Use method='asap', or layers=[...]"
            )
        of_teacher = {name: getattr(teacher, name) for name in OF_THE_TEACHER}
        attends[path] = build_attention(
            {"name": "coarse", **of_teacher, "seed": seed, "backend": backend, **options}
        )
    Progress(shown=progress).line(f"Compiling {len(paths)} layers: coarse duals, without a fit")
    compiled = copy.deepcopy(model).eval().requires_grad_(False)
    swap_attention(compiled, attends)
    compiled.asap_artifact = None  # type: ignore[assignment]  # if the model had one
    return compiled


def check_not_given(function: Callable, **given: Any) -> None:
    """Raise UserError for arguments of a fit, unless they are at their defaults."""
    parameters = inspect.signature(function).parameters
    fitting = [name for name, value in given.items() if value != parameters[name].default]
    if fitting:
        raise UserError(
            f"{', '.join(fitting)} cannot be given with method='coarse', which fits nothing and "
            "reads no batch; leave it out, or use method='asap'"
        )


def has_coarse(model: nn.Module) -> bool:
    return any(isinstance(module, CoarseAttention) for module in model.modules())
