"""The library's operators as methods."""

import functools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from asap_exp.benchmarking.registry import (
    Attend,
    Method,
    Operator,
    Reference,
    Setting,
    method,
    of_any_heads,
)
from asap_exp.benchmarking.work import Recipe
from asap_exp.distillation.ridge import random_slices
from asap_exp.ops import asap_attention, closure_attention, sinkhorn_attention
from asap_exp.ops.reference import sinkhorn as definition
from asap_exp.ops.reference.adaptive import COUNT

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
    """The reference's teacher; for the gradient it keeps the duals of its updates, not 4 T plans.

    At n = 16,384 a plan of one head takes 2 GiB in float64.
    """
    S = definition.logits(q, k, eps=1.0, scale=q.shape[3] ** -0.5, mask=None)
    f = definition.starting_dual(S)
    for _ in range(num_iters - 1):
        f = checkpoint(definition.update, S, f, 1, None, use_reentrant=False)
    return definition.average_values(definition.closure(S, f, None), v, None)


@method("closure")
def closure(setting: Setting) -> Method:
    """Alone: its row dual is given."""
    duals = random_dual(setting)
    word = WORDS[setting.backend]
    return Method(
        f"closure alone, {word}",
        setting.backend,
        {
            word: Operator(
                lambda q, k, v: closure_attention(q, k, v, duals[: len(q)], backend=setting.backend)
            )
        },
        closure_of(duals),
        Recipe(passes=2, row_dual=True),
    )


def random_dual(setting: Setting) -> Tensor:
    """Standard normal `[B, H, N]`, the same for each sample: a gate may then see any of them."""
    batch, heads, n, _ = setting.shape.size
    generator = torch.Generator().manual_seed(setting.seed)
    return torch.randn(1, heads, n, generator=generator).to(setting.device).repeat(batch, 1, 1)


def closure_of(duals: Tensor) -> Reference:
    """The closure of these `[B, H, N]`, those of one sample like those of another."""

    def exact(heads: slice) -> Attend:
        return lambda q, k, v: closure_attention(
            q, k, v, duals[: len(q), heads].double(), backend="reference"
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
    """The whole operator with query features, on random slices and small random weights.

    Its time does not depend on their values, and no accuracy is read off it here.
    """
    heads, width = setting.shape.heads, setting.shape.head_dim
    generator = torch.Generator().manual_seed(setting.seed)
    weights = (
        random_slices(heads, slices, width, seed=setting.seed),
        torch.full((heads, slices), 1 / slices),
        0.01 * torch.randn(heads, width + 1, generator=generator),
        0.01 * torch.randn(heads, COUNT, slices, generator=generator),
    )
    theta, weight, query_weight, adaptive_weight = (x.to(setting.device) for x in weights)

    def operator(backend: str, heads: slice = slice(None)) -> Attend:
        return functools.partial(
            asap_attention,
            theta=theta[heads],
            weight=weight[heads],
            query_weight=query_weight[heads],
            adaptive_weight=adaptive_weight[heads] if adaptive else None,
            refine=refine,
            backend=backend,
        )

    word = WORDS[setting.backend]
    features = "query and adaptive features" if adaptive else "query features"
    refined = f", refine {refine}" if refine else ""
    return Method(
        f"ASAP, {slices} slices + {features}{refined}, {word}",
        setting.backend,
        {word: Operator(operator(setting.backend))},
        functools.partial(operator, "reference"),
        Recipe(passes=2 + 2 * refine, slices=slices, query_features=True, adaptive=adaptive),
    )
