"""The library's operators as methods."""

import functools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from asap_exp.benchmark.flops import Recipe
from asap_exp.benchmark.inputs import Place
from asap_exp.benchmark.map_inputs import Weights, given_duals, map_weights
from asap_exp.benchmark.registry import (
    Attend,
    Method,
    Operator,
    Reference,
    Setting,
    method,
    of_any_heads,
)
from asap_exp.ops import asap_attention, closure_attention, sinkhorn_attention
from asap_exp.ops.reference import sinkhorn as definition

WORDS = {"reference": "eager", "triton": "fused"}


@method("sinkhorn_{num_iters}")
def sinkhorn(setting: Setting, num_iters: int) -> Method:
    return teacher(num_iters, setting.backend, WORDS[setting.backend])


@method("sinkhorn_eager_{num_iters}")
def sinkhorn_eager(setting: Setting, num_iters: int) -> Method:
    return teacher(num_iters, "reference", "eager")


@method("sinkhorn_compiled_{num_iters}")
def sinkhorn_compiled(setting: Setting, num_iters: int) -> Method:
    return teacher(num_iters, "reference", "torch.compile", compiled=True)


def teacher(num_iters: int, backend: str, word: str, *, compiled: bool = False) -> Method:
    attend: Attend = functools.partial(sinkhorn_attention, num_iters=num_iters, backend=backend)
    if compiled:
        attend = torch.compile(attend, dynamic=False)
    return Method(
        f"Sinkhorn T = {num_iters}, {word}",
        backend,
        {word: Operator(attend, compiled=compiled)},
        of_any_heads(functools.partial(checkpointed_teacher, num_iters=num_iters)),
        Recipe(passes=2 * num_iters),
    )


def checkpointed_teacher(q: Tensor, k: Tensor, v: Tensor, *, num_iters: int) -> Tensor:
    """Compute the teacher by the reference; for the gradient, keep T duals instead of 4 T plans.

    At n = 16,384, the plan of one head takes 2 GiB in float64.
    """
    S = definition.logits(q, k, eps=1.0, scale=q.shape[3] ** -0.5, mask=None)
    f = definition.starting_dual(S)
    for _ in range(num_iters - 1):
        f = checkpoint(definition.update, S, f, 1, None, use_reentrant=False)
    return definition.average_values(definition.closure(S, f, None), v, None)


@method("closure")
def closure(setting: Setting) -> Method:
    """Build the closure alone, from a given row dual."""
    dual = given_duals(setting).row
    word = WORDS[setting.backend]
    return Method(
        f"closure alone, {word}",
        setting.backend,
        {
            word: Operator(
                lambda q, k, v: closure_attention(q, k, v, dual[: len(q)], backend=setting.backend)
            )
        },
        closure_of(dual),
        Recipe(passes=2, row_dual=True),
    )


def closure_of(dual: Tensor) -> Reference:
    """Return the reference: the closure of `dual` `[B, H, N]`."""

    def exact(place: Place) -> Attend:
        return lambda q, k, v: closure_attention(
            q, k, v, place.of(dual).double(), backend="reference"
        )

    return exact


@method("asap_{slices}")
def asap(setting: Setting, slices: int) -> Method:
    return asap_refined(setting, slices, 0)


@method("asap_{slices}_adaptive")
def asap_adaptive(setting: Setting, slices: int) -> Method:
    return asap_refined(setting, slices, 0, adaptive=True)


@method("asap_{slices}_refine_{refine}")
def asap_refined(setting: Setting, slices: int, refine: int, *, adaptive: bool = False) -> Method:
    """Build the whole operator with query features; its accuracy is not measured here."""
    weights = map_weights(setting, slices, adaptive=adaptive)

    def operator(backend: str, weights: Weights) -> Attend:
        options = weights._asdict() | {"refine": refine, "backend": backend}
        return functools.partial(asap_attention, **options)

    word = WORDS[setting.backend]
    features = "query and adaptive features" if adaptive else "query features"
    refined = f", refine {refine}" if refine else ""
    return Method(
        f"ASAP, {slices} slices + {features}{refined}, {word}",
        setting.backend,
        {word: Operator(operator(setting.backend, weights))},
        lambda place: operator("reference", weights.of_heads(place.heads)),
        Recipe(passes=2 + 2 * refine, slices=slices, query_features=True, adaptive=adaptive),
    )
