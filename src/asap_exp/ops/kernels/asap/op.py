"""ASAP by fused operators: the dual from sliced potentials, then updates and the closure.

`options` are eps, scale and key_padding_mask, as `asap_exp.ops.api` has checked them.
"""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops import reference
from asap_exp.ops.call import Call
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.asap import dual
from asap_exp.ops.kernels.asap.logit_features import logit_dual
from asap_exp.ops.kernels.asap.one_launch import Weights
from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.sinkhorn.updates import refined_attention, refined_dual
from asap_exp.ops.masking import blank
from asap_exp.ops.routing import choose


def sliced_potentials(q: Tensor, k: Tensor, theta: Tensor, **options: Any) -> Tensor:
    """Compute the potentials, without a gradient."""
    call = _call(q, k, theta, q.dtype)
    return choose("sliced_potentials", call).launch(q, k, theta, **options)


def asap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    *,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    refine: int,
    relaxation: Tensor | None,
    **options: Any,
) -> Tensor:
    """Compute the closure of f_hat after `refine` updates, `[B, H, N, width of v]`."""
    weights = (theta, weight, query_weight, adaptive_weight, logit_weight)
    _, _, n, head_dim = q.shape
    _, _, m, value_dim = v.shape
    gradient = gradient_needed(q, k, v, *weights, relaxation)
    relaxed, logit_features = relaxation is not None, logit_weight is not None
    call = Call(
        n, m, head_dim, value_dim, q.dtype, v.dtype, 1, False, False, False,
        gradient, theta.shape[1], refine, relaxed, logit_features,
    )  # fmt: skip
    route = choose("asap", call)
    return route.launch(q, k, v, weights, refine=refine, relaxation=relaxation, **options)


def separate_operators(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Weights,
    *,
    refine: int,
    relaxation: Tensor | None,
    **options: Any,
) -> Tensor:
    """Compute the dual, the updates and the closure one after the other."""
    f_hat = sliced_dual(q, k, *weights, **options)
    return refined_attention(q, k, v, f_hat, refine=refine, relaxation=relaxation, **options)


def separate_launches(
    p: Launch, weights: Weights, relaxation: Tensor | None, padding: Tensor | None
) -> Tensor:
    """Run `separate_operators` inside one operator: no trace depends on the number of heads."""
    options = {"eps": 1.0, "scale": p.slope, "key_padding_mask": padding}
    refine = p.num_iters - 1
    return separate_operators(
        p.q, p.k, p.v, weights, refine=refine, relaxation=relaxation, **options
    )


def predicted_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    *,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    refine: int,
    relaxation: Tensor | None,
    **options: Any,
) -> Tensor:
    """Compute f_hat after `refine` updates, `[B, H, N]`; no gradient if `refine` > 0."""
    weights = (theta, weight, query_weight, adaptive_weight, logit_weight)
    f_hat = sliced_dual(q, k, *weights, **options)
    f_hat = refined_dual(q, k, f_hat, refine, relaxation, **options)
    return blank(f_hat, options["key_padding_mask"], 2)


def sliced_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    **options: Any,
) -> Tensor:
    """Compute f_hat `[B, H, N]`."""
    weights = (theta, weight, query_weight, adaptive_weight, logit_weight)
    call = _call(q, k, theta, q.dtype, gradient=gradient_needed(q, k, *weights))
    return choose("sliced_dual", call).launch(q, k, *weights, **options)


def dual_by_kernels(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    **options: Any,
) -> Tensor:
    """Compute f_hat `[B, H, N]`, without a gradient."""
    f_hat = dual.sliced_dual(q, k, theta, weight, query_weight, adaptive_weight, **options)
    if logit_weight is not None:
        f_hat = f_hat + logit_dual(q, k, logit_weight, **options)
    return f_hat


def _call(
    q: Tensor, k: Tensor, theta: Tensor, dtype: torch.dtype, *, gradient: bool = False
) -> Call:
    return Call(
        q.shape[2], k.shape[2], q.shape[3], 0, dtype, dtype,
        gradient=gradient, slices=theta.shape[1],
    )  # fmt: skip


dual_by_reference = reference.asap.sliced_dual
