"""ASAP on the fused operators: the dual from sliced potentials, then updates and the closure.

One launch can do all where the sequence is short and no gradient is needed (`one_launch`).
"""

from typing import Any

from torch import Tensor

from asap_exp.ops import reference
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.asap import dual, one_launch
from asap_exp.ops.kernels.asap.logit_features import logit_dual
from asap_exp.ops.kernels.sinkhorn.updates import refined_attention, refined_dual
from asap_exp.ops.masking import blank


def sliced_potentials(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """No gradient. The reference where queries and keys differ in number."""
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    if not dual.supports(q, k):
        return reference.sliced_potentials(q, k, theta, **options)
    return dual.sliced_potentials(q, k, theta, **options)


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
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    weights = (theta, weight, query_weight, adaptive_weight, logit_weight)
    if one_launch.supports(q, k, v, theta) and not gradient_needed(q, k, v, *weights, relaxation):
        updates = {"refine": refine, "relaxation": relaxation}
        return one_launch.asap_attention(q, k, v, *weights, **(options | updates))
    f_hat = sliced_dual(q, k, *weights, **options)
    return refined_attention(q, k, v, f_hat, refine=refine, relaxation=relaxation, **options)


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
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """No gradient where `refine` > 0."""
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    weights = (theta, weight, query_weight, adaptive_weight, logit_weight)
    f_hat = sliced_dual(q, k, *weights, **options)
    f_hat = refined_dual(q, k, f_hat, refine, relaxation, **options)
    return blank(f_hat, key_padding_mask, 2)


def sliced_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """f_hat `[B, H, N]`; by the reference where a gradient of it is needed or n != m."""
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    weights = (theta, weight, query_weight, adaptive_weight)
    if not dual.supports(q, k) or gradient_needed(q, k, *weights, logit_weight):
        return reference.asap.sliced_dual(q, k, *weights, logit_weight, **options)
    f_hat = dual.sliced_dual(q, k, *weights, **options)
    if logit_weight is not None:
        f_hat = f_hat + logit_dual(q, k, logit_weight, **options)
    return f_hat
