"""The library's operators as methods."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from asap_exp.benchmark.blocks import in_blocks
from asap_exp.benchmark.flops import Recipe
from asap_exp.benchmark.inputs import Place
from asap_exp.benchmark.map_inputs import given_duals, map_weights
from asap_exp.benchmark.precision import in_tf32
from asap_exp.benchmark.registry import (
    Attend,
    Method,
    Operator,
    Reference,
    Setting,
    method,
    of_any_heads,
)
from asap_exp.ops import (
    SlicedMap,
    Subset,
    choose_subset,
    closure_attention,
    coarse_attention,
    map_attention,
    sinkhorn_attention,
)
from asap_exp.ops.reference import sinkhorn as definition

WORDS = {"reference": "eager", "triton": "fused"}

COARSE_UPDATES = 20
"""Updates of coarse attention."""


@method("sinkhorn_{num_iters}")
def sinkhorn(setting: Setting, num_iters: int) -> Method:
    return teacher(num_iters, setting.backend, WORDS[setting.backend])


@method("sinkhorn_tf32_{num_iters}")
def sinkhorn_tf32(setting: Setting, num_iters: int) -> Method:
    return in_tf32(sinkhorn(setting, num_iters))


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
        of_any_heads(functools.partial(blockwise_teacher, num_iters=num_iters)),
        Recipe(passes=2 * num_iters),
    )


def blockwise_teacher(q: Tensor, k: Tensor, v: Tensor, *, num_iters: int) -> Tensor:
    """Compute the teacher by the steps of the reference, a block of queries or keys at a time.

    At n = 65,536, all logits of one head would take 32 GiB in float64.
    """
    slope, n = q.shape[3] ** -0.5, q.shape[2]

    def step(x: Tensor, y: Tensor, dual: Tensor) -> Tensor:
        """Return the dual of `x` from that of `y`: of keys and queries, the same step."""
        return in_blocks(
            lambda part: definition.row_step(
                definition.logits(part, y, eps=1.0, scale=slope, mask=None), dual, None
            ),
            x,
            n,
        )

    row = q.new_zeros(q.shape[:3])
    for _ in range(num_iters - 1):
        row = step(q, k, step(k, q, row))
    col = step(k, q, row)
    return in_blocks(lambda part: definition.attention_pass(part, k, v, col, None, slope), q, n)


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


@method("asap_{slices}_adaptive_one_pass")
def asap_one_pass(setting: Setting, slices: int) -> Method:
    return asap_refined(setting, slices, 0, adaptive=True, one_pass=True)


@method("asap_{slices}_refine_{refine}")
def asap_refined(
    setting: Setting, slices: int, refine: int, *, adaptive: bool = False, one_pass: bool = False
) -> Method:
    """Build the whole operator with query features; its accuracy is not measured here."""
    weights = map_weights(setting, slices, adaptive=adaptive)._replace(one_pass=one_pass)

    def operator(backend: str, map: SlicedMap) -> Attend:
        return functools.partial(map_attention, map=map, refine=refine, backend=backend)

    word = WORDS[setting.backend]
    features = "query and adaptive features" if adaptive else "query features"
    form = ", one pass" if one_pass else f", refine {refine}" if refine else ""
    return Method(
        f"ASAP, {slices} slices + {features}{form}, {word}",
        setting.backend,
        {word: Operator(operator(setting.backend, weights))},
        lambda place: operator("reference", weights.heads(place.heads)),
        Recipe(
            passes=1 if one_pass else 2 + 2 * refine,
            slices=slices,
            query_features=True,
            adaptive=adaptive,
        ),
    )


@method("coarse_{tokens}")
def coarse(setting: Setting, tokens: int) -> Method:
    return coarse_form(setting, tokens, one_pass=False)


@method("coarse_{tokens}_one_pass")
def coarse_one_pass(setting: Setting, tokens: int) -> Method:
    return coarse_form(setting, tokens, one_pass=True)


def evenly(setting: Setting, tokens: int) -> Subset:
    """Return tokens at equal distances, for heads of any sample."""
    somewhere = torch.empty(1, 1, setting.shape.n, 1, device=setting.device)
    return choose_subset(somewhere, tokens)


def coarse_form(setting: Setting, tokens: int, *, one_pass: bool) -> Method:
    """Build coarse attention on tokens at equal distances, chosen before the clock starts."""
    attend = functools.partial(
        coarse_attention,
        subset=evenly(setting, tokens),
        num_iters=COARSE_UPDATES,
        one_pass=one_pass,
    )
    form = "one pass" if one_pass else "two-sided"
    recipe = Recipe(
        passes=1 if one_pass else 2, subset=tokens, subset_passes=2 * (COARSE_UPDATES - 1)
    )
    return of_both(
        setting, f"coarse, {tokens} tokens, T = {COARSE_UPDATES}, {form}", attend, recipe
    )


def of_both(
    setting: Setting, words: str, attend: Callable[..., Tensor], recipe: Recipe | None = None
) -> Method:
    """Return the method of an operator that takes `backend`; its reference is the reference's."""
    word = WORDS[setting.backend]
    return Method(
        f"{words}, {word}",
        setting.backend,
        {word: Operator(functools.partial(attend, backend=setting.backend))},
        of_any_heads(functools.partial(attend, backend="reference")),
        recipe,
    )
