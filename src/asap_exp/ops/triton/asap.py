"""ASAP on the fused operators: the dual from sliced potentials, then updates and the closure.

One launch can do all where the sequence is short and no gradient is needed (`one_launch`).
"""

from typing import Any

from torch import Tensor

from asap_exp.ops import reference
from asap_exp.ops._arguments import gradient_needed
from asap_exp.ops.reference._masking import blank
from asap_exp.ops.triton import one_launch, potentials
from asap_exp.ops.triton.sinkhorn import sinkhorn
from asap_exp.ops.triton.tiles import LOG2_E


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
    if not potentials.supports(q, k):
        return reference.sliced_potentials(q, k, theta, **options)
    return potentials.sliced_potentials(q, k, theta, **options)


def asap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    *,
    adaptive_weight: Tensor | None,
    refine: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    weights = (theta, weight, query_weight, adaptive_weight)
    if one_launch.supports(q, k, v, theta) and not gradient_needed(q, k, v, *weights):
        return one_launch.asap_attention(q, k, v, *weights, refine=refine, **options)
    f_hat = sliced_dual(q, k, *weights, **options)
    return sinkhorn(q, k, v, f_hat, num_iters=refine + 1, **options).out


def predicted_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    *,
    adaptive_weight: Tensor | None,
    refine: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """No gradient where `refine` > 0."""
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    f_hat = sliced_dual(q, k, theta, weight, query_weight, adaptive_weight, **options)
    if refine > 0:
        duals = sinkhorn(q, k, k[..., :0], f_hat, num_iters=refine, keep_duals=True, **options).rows
        f_hat = duals[:, :, -1] / LOG2_E
    return blank(f_hat, key_padding_mask, 2)


def sliced_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """f_hat `[B, H, N]`; by the reference where a gradient of it is needed or n != m."""
    weights = (theta, weight, query_weight, adaptive_weight)
    fused = potentials.supports(q, k) and not gradient_needed(q, k, *weights)
    by = potentials if fused else reference.asap
    return by.sliced_dual(q, k, *weights, eps=eps, scale=scale, key_padding_mask=key_padding_mask)
