"""Compile a model to coarse duals: nothing is fitted, so no batch is read."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from asap_exp.attention import (
    CoarseAttention,
    build_attention,
    swap_attention,
)
from asap_exp.calibration.artifact import make_artifact
from asap_exp.calibration.coarse import coarse_layers, identity_without_fit
from asap_exp.calibration.config import FORMS, CoarseKeys
from asap_exp.compiling.arguments import (
    check_has_weights,
    coarse_options,
    meant,
    of_asap,
    sinkhorn_paths,
)
from asap_exp.compiling.saving import remember, teacher_identity
from asap_exp.core.console import Progress
from asap_exp.core.errors import UserError


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
    own = coarse_options()
    for name in options:
        if name not in own:
            raise TypeError(
                f"compile(method='coarse') takes no keyword {name!r}{meant(name, own)}; it "
                f"takes {', '.join(own)}, and T and eps from the model{of_asap(name)}"
            )
    check_has_weights(model)
    paths = sinkhorn_paths(model, layers)
    keys, one_pass = settings({"seed": seed, **options})
    attends = coarse_layers(model, paths, keys, one_pass=one_pass, backend=backend)
    Progress(shown=progress).line(f"Compiling {len(paths)} layers: coarse duals, without a fit")
    compiled = copy.deepcopy(model).eval().requires_grad_(False)
    swap_attention(compiled, attends)
    identity = {**teacher_identity(model, paths), **identity_without_fit(keys, FORMS[one_pass])}
    remember(compiled, make_artifact(attends, {}, identity), backend)
    return compiled


def settings(options: Mapping[str, Any]) -> tuple[CoarseKeys, bool]:
    """Return the tokens that these options of `CoarseAttention` ask for, and if it is one pass.

    UserError for one that is not allowed.
    """
    try:
        attend = build_attention({"name": "coarse", **options})
    except UserError as error:
        raise UserError(str(error).removeprefix("attention=coarse: ")) from error
    assert isinstance(attend, CoarseAttention)
    keys = CoarseKeys(
        attend.tokens,
        attend.subset,
        attend.weights,
        seed=attend.seed,
        grid_width=attend.grid_width,
    )
    return keys, attend.one_pass


def check_not_given(function: Callable, **given: Any) -> None:
    """Raise UserError for arguments of a fit, unless they are at their defaults."""
    parameters = inspect.signature(function).parameters
    fitting = [name for name, value in given.items() if differs(value, parameters[name].default)]
    if fitting:
        raise UserError(
            f"{', '.join(fitting)} cannot be given with method='coarse', which fits nothing and "
            "reads no batch; leave it out, or use method='asap'"
        )


def differs(value: Any, default: Any) -> bool:
    """Return True unless a value is the default; an array is not compared with None by entries."""
    return value is not None if default is None else bool(value != default)
