"""The passes of the closure as separate methods, to compare FlexAttention with our attention pass.

The closure is a column pass, which gives a dual g per key, and an attention pass
softmax_j(S + g) v: flash attention with a bias per key, which FlexAttention also computes.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from asap_exp.benchmark.flops import Recipe
from asap_exp.benchmark.inputs import Place
from asap_exp.benchmark.map_inputs import Duals, given_duals
from asap_exp.benchmark.operators import WORDS, closure_of
from asap_exp.benchmark.registry import Attend, Method, Operator, Setting, Unavailable, method
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.passes import attention_pass as one_attention_pass
from asap_exp.ops.passes import column_pass

BiasedAttention = Callable[[Tensor, Tensor, Tensor, Duals], Tensor]
"""Function that computes softmax_j(S + g) v, g `[B, H, M]`; the row dual gives the size of sums."""


@method("closure_flex")
def closure_flex(setting: Setting) -> Method:
    """Build the closure of the same row dual by our column pass, then FlexAttention."""
    dual, attention = given_duals(setting).row, flex(setting.device.type)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = dual[: len(q)]
        col = column_pass(q, k, row, backend=setting.backend)
        return attention(q, k, v, Duals(row, col))

    return Method(
        "closure alone, FlexAttention",
        setting.backend,
        {"flex": Operator(attend, compiled=True)},
        closure_of(dual),
        Recipe(passes=2, row_dual=True),
    )


@method("attention_pass")
def attention_pass(setting: Setting) -> Method:
    """Build the attention pass from given duals, by our tiled kernels at every length."""

    def attention(q: Tensor, k: Tensor, v: Tensor, duals: Duals) -> Tensor:
        return one_attention_pass(q, k, v, duals.col, duals.row, backend=setting.backend)

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
        return lambda q, k, v: one_attention_pass(q, k, v, col, backend="reference")

    return Method(
        f"attention pass alone, {word}",
        backend,
        {word: Operator(attend, compiled=backend == "pytorch")},
        exact,
        Recipe(passes=1, row_dual=True),
    )


@functools.cache
def flex(device_type: str) -> BiasedAttention:
    """Return FlexAttention: compiled once per row on a GPU; eager and without gradient on a CPU."""
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
