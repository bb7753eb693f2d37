"""The library's operators as methods."""

import functools

import torch

from asap_exp.benchmarking.registry import Attend, Method, Operator, Setting, method
from asap_exp.benchmarking.work import Recipe
from asap_exp.distillation.ridge import random_slices
from asap_exp.ops import asap_attention, closure_attention, sinkhorn_attention

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
    update = functools.partial(sinkhorn_attention, num_iters=num_iters)
    attend: Attend = functools.partial(update, backend=backend)
    if compiled:
        attend = torch.compile(attend, dynamic=False)
    return Method(
        f"Sinkhorn T = {num_iters}, {word}",
        backend,
        {word: Operator(attend, compiled=compiled)},
        functools.partial(update, backend="reference"),
        Recipe(passes=2 * num_iters),
    )


@method("closure")
def closure(setting: Setting) -> Method:
    """Alone: its row dual is given. The same random one for each sample."""
    _, heads, n, _ = setting.shape.size
    generator = torch.Generator().manual_seed(setting.seed)
    row_dual = torch.randn(1, heads, n, generator=generator).to(setting.device)
    duals = row_dual.repeat(setting.shape.batch, 1, 1)
    word = WORDS[setting.backend]
    return Method(
        f"closure alone, {word}",
        setting.backend,
        {
            word: Operator(
                lambda q, k, v: closure_attention(q, k, v, duals, backend=setting.backend)
            )
        },
        lambda q, k, v: closure_attention(
            q, k, v, row_dual.double().repeat(len(q), 1, 1), backend="reference"
        ),
        Recipe(passes=2, row_dual=True),
    )


@method("asap_{slices}")
def asap(setting: Setting, slices: int) -> Method:
    return asap_refined(setting, slices, 0)


@method("asap_{slices}_refine_{refine}")
def asap_refined(setting: Setting, slices: int, refine: int) -> Method:
    """The whole operator with query features, on random slices and small random weights.

    Its time does not depend on their values, and no accuracy is read off it here.
    """
    heads, width = setting.shape.heads, setting.shape.head_dim
    generator = torch.Generator().manual_seed(setting.seed)
    weights = (
        random_slices(heads, slices, width, seed=setting.seed),
        torch.full((heads, slices), 1 / slices),
        0.01 * torch.randn(heads, width + 1, generator=generator),
    )
    theta, weight, query_weight = (x.float().to(setting.device) for x in weights)
    operator = functools.partial(
        asap_attention, theta=theta, weight=weight, query_weight=query_weight, refine=refine
    )
    word = WORDS[setting.backend]
    refined = f", refine {refine}" if refine else ""
    return Method(
        f"ASAP, {slices} slices + query features{refined}, {word}",
        setting.backend,
        {word: Operator(functools.partial(operator, backend=setting.backend))},
        functools.partial(operator, backend="reference"),
        Recipe(passes=2 + 2 * refine, slices=slices, query_features=True),
    )
