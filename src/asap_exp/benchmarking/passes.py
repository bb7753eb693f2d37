"""The passes of the closure one by one, to compare FlexAttention with our attention pass.

The closure is a column pass, which gives a dual g for each key, and an attention pass
softmax_j(S + g) v: flash attention with a bias for each key, which FlexAttention computes too.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from asap_exp.benchmarking.inputs import Place
from asap_exp.benchmarking.operators import WORDS, closure_of
from asap_exp.benchmarking.parameters import Duals, given_duals
from asap_exp.benchmarking.registry import Attend, Method, Operator, Setting, Unavailable, method
from asap_exp.benchmarking.work import Recipe
from asap_exp.ops import reference
from asap_exp.ops.backend import resolve
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.reference.sinkhorn import average_values, column_step, logits

BiasedAttention = Callable[[Tensor, Tensor, Tensor, Duals], Tensor]
"""softmax_j(S + g) v of q, k, v and g `[B, H, M]`; the row dual tells the size of the sums."""


@method("closure_flex")
def closure_flex(setting: Setting) -> Method:
    """As `closure`, of the same row dual: our column pass, then FlexAttention."""
    dual, attention = given_duals(setting).row, flex(setting.device.type)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = dual[: len(q)]
        return attention(q, k, v, Duals(row, column_pass(q, k, row, setting.backend)))

    return Method(
        "closure alone, FlexAttention",
        setting.backend,
        {"flex": Operator(attend, compiled=True)},
        closure_of(dual),
        Recipe(passes=2, row_dual=True),
    )


@method("attention_pass")
def attention_pass(setting: Setting) -> Method:
    """Its duals are given; by our streaming kernel at every length."""
    attention = functools.partial(attention_with_bias, backend=setting.backend)
    return of_given_duals(setting, setting.backend, WORDS[setting.backend], attention)


@method("attention_pass_flex")
def attention_pass_flex(setting: Setting) -> Method:
    return of_given_duals(setting, "pytorch", "FlexAttention", flex(setting.device.type))


def of_given_duals(setting: Setting, backend: str, word: str, attention: BiasedAttention) -> Method:
    duals = given_duals(setting)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, Duals(duals.row[: len(q)], duals.col[: len(q)]))

    def exact(place: Place) -> Attend:
        col = place.of(duals.col).double()
        return lambda q, k, v: softmax_with_bias(q, k, v, col)

    return Method(
        f"attention pass alone, {word}",
        backend,
        {word: Operator(attend, compiled=backend == "pytorch")},
        exact,
        Recipe(passes=1, row_dual=True),
    )


@functools.cache
def flex(device_type: str) -> BiasedAttention:
    """Compiled on a GPU, once for all methods of a row; on a CPU eager, and forward alone."""
    attend = flex_with_bias
    if device_type == "cuda":
        attend = torch.compile(attend, dynamic=False)
    return lambda q, k, v, duals: attend(q, k, v, duals.col)


def flex_with_bias(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    if q.device.type == "cpu" and gradient_needed(q, k, v):
        raise Unavailable("FlexAttention has no gradient on a CPU")

    def biased(score: Tensor, sample: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + g[sample, head, j]

    return flex_attention(q, k, v, score_mod=biased)


def softmax_with_bias(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """The definition."""
    S = logits(q, k, eps=1.0, scale=q.shape[3] ** -0.5, mask=None)
    return average_values(torch.softmax(S + g[..., None, :], dim=-1), v, None)


def attention_with_bias(q: Tensor, k: Tensor, v: Tensor, duals: Duals, backend: str) -> Tensor:
    if resolve(backend, q, v, no_gradient_of=(q, k, v)) is reference:
        return softmax_with_bias(q, k, v, duals.col)
    from asap_exp.ops.kernels import softmax
    from asap_exp.ops.kernels.launch import Problem, unwritten_output

    out = unwritten_output(q, v)
    problem = Problem.of(q, k, v, None, 1, q.shape[3] ** -0.5)
    softmax.attention_with_bias(problem, duals.col, out, row=duals.row)
    return out


def column_pass(q: Tensor, k: Tensor, row_dual: Tensor, backend: str) -> Tensor:
    """g `[B, H, M]` of f `[B, H, N]`."""
    scale = q.shape[3] ** -0.5
    if resolve(backend, q, no_gradient_of=(q, k)) is reference:
        return column_step(logits(q, k, eps=1.0, scale=scale, mask=None), row_dual, None)
    from asap_exp.ops.kernels.launch import Problem
    from asap_exp.ops.kernels.sinkhorn import forward, inference
    from asap_exp.ops.kernels.tiles import LOG2_E

    problem = Problem.of(q, k, k, None, 1, scale)
    if inference.takes(problem):
        queries, keys = inference.Side(problem.q), inference.Side(problem.k)
        inference.set_dual(problem, queries, row_dual)
        inference.half_step(problem, keys, queries, problem.log2_ratio)
        return keys.dual / LOG2_E
    g = torch.empty_like(row_dual)
    forward.column_step(problem, row_dual * LOG2_E, None, g)
    return g / LOG2_E
