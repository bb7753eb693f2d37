"""ASAP by fused operators: the dual from sliced potentials, then updates and the closure.

With a map of one pass the dual is that of the keys, and one attention pass comes after it.

`options` are eps, scale and key_padding_mask, as the public operators have checked them, and the
`products` of float32 logits. Projections on slices are multiplied in IEEE arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asap_exp.ops import reference
from asap_exp.ops.call import Call
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.asap import dual
from asap_exp.ops.kernels.asap.logit_features import logit_dual
from asap_exp.ops.kernels.coarse.op import centred_dual, pass_with_dual
from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.sinkhorn.updates import refined_attention, refined_dual
from asap_exp.ops.masking import blank
from asap_exp.ops.products import AS_ALLOWED, IEEE
from asap_exp.ops.routing import choose
from asap_exp.ops.sliced_map import SlicedMap

IN_THE_DUAL = ("query_weight", "adaptive_weight")
"""Weights of the features that the kernels of the dual compute themselves."""

FEATURE_KERNELS: dict[str, Callable[..., Tensor]] = {"logit_weight": logit_dual}
"""Kernels that compute the weighted sum of features, by weight."""


def sliced_potentials(
    q: Tensor, k: Tensor, theta: Tensor, *, products: str = IEEE, **options: Any
) -> Tensor:
    """Compute the potentials, without a gradient; there are no logits, so no `products`."""
    call = _call(q, k, theta, q.dtype)
    return choose("sliced_potentials", call).launch(q, k, theta, **options)


def map_attention(
    q: Tensor, k: Tensor, v: Tensor, map: SlicedMap, *, refine: int, **options: Any
) -> Tensor:
    """Compute the closure of f_hat after `refine` updates, or one pass, `[B, H, N, width of v]`."""
    _, _, n, head_dim = q.shape
    _, _, m, value_dim = v.shape
    call = Call(
        n, m, head_dim, value_dim, q.dtype, v.dtype, 1, False, False, False,
        gradient_needed(q, k, v, *map.tensors), map.theta.shape[1], refine,
        map.relaxation is not None, map.logit_weight is not None,
        other_features=other_features(map), one_pass=map.one_pass,
    )  # fmt: skip
    return choose("asap", call).launch(q, k, v, map, refine=refine, **options)


def separate_operators(
    q: Tensor, k: Tensor, v: Tensor, map: SlicedMap, *, refine: int, **options: Any
) -> Tensor:
    """Compute the dual, the updates and the closure one after the other, or the dual and a pass."""
    f_hat = sliced_dual(q, k, map, **options)
    if map.one_pass:
        return pass_with_dual(q, k, v, f_hat, **options)
    return refined_attention(q, k, v, f_hat, refine=refine, relaxation=map.relaxation, **options)


def separate_launches(p: Launch, map: SlicedMap, padding: Tensor | None) -> Tensor:
    """Run `separate_operators` inside one operator: no trace depends on the number of heads."""
    options = {"eps": 1.0, "scale": p.slope, "key_padding_mask": padding, "products": p.products}
    return separate_operators(p.q, p.k, p.v, map, refine=p.num_iters - 1, **options)


def map_dual(q: Tensor, k: Tensor, map: SlicedMap, *, refine: int, **options: Any) -> Tensor:
    """Compute f_hat after `refine` updates, `[B, H, N]`; no gradient if `refine` > 0."""
    f_hat = sliced_dual(q, k, map, **options)
    if map.one_pass:
        return blank(f_hat, options["key_padding_mask"], 2)
    f_hat = refined_dual(q, k, f_hat, refine, map.relaxation, **options)
    return blank(f_hat, options["key_padding_mask"], 2)


def sliced_dual(q: Tensor, k: Tensor, map: SlicedMap, **options: Any) -> Tensor:
    """Compute f_hat `[B, H, N]`, or that of the keys `[B, H, M]`."""
    gradient = gradient_needed(q, k, *map._replace(relaxation=None).tensors)
    call = _call(q, k, map.theta, q.dtype, gradient=gradient)
    call = call._replace(other_features=other_features(map))
    return choose("sliced_dual", call).launch(q, k, map, **options)


def dual_by_kernels(
    q: Tensor, k: Tensor, map: SlicedMap, *, products: str = AS_ALLOWED, **options: Any
) -> Tensor:
    """Compute f_hat, without a gradient."""
    of_keys = map.one_pass
    side, other = (k, q) if of_keys else (q, k)
    f_hat = dual.sliced_dual(
        side, other, map.theta, map.weight, map.query_weight, map.adaptive_weight, **options
    )
    for feature, weight in map.features():
        if feature.weight in FEATURE_KERNELS:
            kernel = FEATURE_KERNELS[feature.weight]
            f_hat = f_hat + kernel(side, other, weight, products=products, **options)
        elif feature.weight == "coarse_weight":
            assert map.coarse is not None
            coarse = centred_dual(
                q, k, map.coarse, of_queries=not of_keys, products=products, **options
            )
            f_hat = f_hat + weight * coarse
    return f_hat


def dual_refusal(call: Call) -> str | None:
    """Return why the kernels do not compute the dual, or None if they do."""
    known = (*FEATURE_KERNELS, "coarse_weight")
    unknown = [weight for weight in call.other_features if weight not in known]
    if unknown:
        return f"has no kernel for the features of {', '.join(unknown)}"
    return dual.self_attention_alone(call)


def other_features(map: SlicedMap) -> tuple[str, ...]:
    """Return the weights of features beside those of queries, samples and logits."""
    usual = (*IN_THE_DUAL, "logit_weight")
    return tuple(feature.weight for feature, _ in map.features() if feature.weight not in usual)


def _call(
    q: Tensor, k: Tensor, theta: Tensor, dtype: torch.dtype, *, gradient: bool = False
) -> Call:
    return Call(
        q.shape[2], k.shape[2], q.shape[3], 0, dtype, dtype,
        gradient=gradient, slices=theta.shape[1],
    )  # fmt: skip


def dual_by_reference(
    q: Tensor, k: Tensor, map: SlicedMap, *, products: str = IEEE, **options: Any
) -> Tensor:
    """Compute f_hat; PyTorch multiplies, whatever `products` says."""
    return reference.asap.sliced_dual(q, k, map, **options)
