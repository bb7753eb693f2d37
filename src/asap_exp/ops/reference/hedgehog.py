"""Hedgehog's attention: learned feature maps in place of the exponential, in linear time.

With one square matrix per head for queries and one for keys, the map of a vector x is

    phi(x) = [softmax(W x), softmax(-W x)]   of 2 D positive values, at least SMALLEST,

and the plan, with rows that sum to 1,

    A_ij = phi_q(q_i) . phi_k(k_j) / sum_j phi_q(q_i) . phi_k(k_j).

`hedgehog_plan` makes it. `hedgehog_attention` multiplies from the right, A v = phi_q (phi_k^T v) /
(phi_q . sum_j phi_k(k_j)), so that time and memory are O(n D E) and no n x m matrix exists.

Source: Zhang et al., 2024, The Hedgehog & the Porcupine, arXiv 2402.04347, which writes the
features as exponentials. Here they are normalised over the channels, as in the authors' later code
(HazyResearch/lolcats, `softmax_dim`), with its lower bound, a map for each head and no bias.
"""

import torch
from torch import Tensor

from asap_exp.ops.masking import blank, compute_dtype, effective_padding

SMALLEST = 1e-12
"""Lower bound of a feature, so that no row of the plan is divided by zero."""


def hedgehog_features(x: Tensor, weight: Tensor) -> Tensor:
    """Compute phi of x `[B, H, N, D]` by weights `[H, F, D]`: `[B, H, N, 2 F]`, in weight's dtype.

    The two halves of the features of a vector sum to 1 each.
    """
    projected = x.to(weight.dtype) @ weight.transpose(-1, -2)
    halves = [projected.softmax(dim=-1), (-projected).softmax(dim=-1)]
    return torch.cat(halves, dim=-1).clamp(min=SMALLEST)


def hedgehog_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Compute A v `[B, H, N, width of v]` in v's dtype, in linear time; 0 at padded positions.

    The weights are `[H, F, D]`.
    """
    features_q, features_k = both(q, k, query_weight, key_weight, key_padding_mask)
    values = blank(v, key_padding_mask, 2).to(features_k.dtype)
    summed = features_k.sum(dim=-2)[..., None]
    out = (features_q @ (features_k.transpose(-1, -2) @ values)) / (features_q @ summed)
    return blank(out, key_padding_mask, 2).to(v.dtype)


def hedgehog_plan(
    q: Tensor,
    k: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Compute the plan A `[B, H, N, M]`; 0 at padded positions."""
    features_q, features_k = both(q, k, query_weight, key_weight, key_padding_mask)
    similar = features_q @ features_k.transpose(-1, -2)
    plan = similar / similar.sum(dim=-1, keepdim=True)
    return blank(blank(plan, key_padding_mask, 2), key_padding_mask, 3)


def both(
    q: Tensor,
    k: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    key_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the features of queries and of keys; those of padded keys are 0."""
    dtype = compute_dtype(q)
    x, y = (blank(t, key_padding_mask, 2) for t in (q, k))
    features_q = hedgehog_features(x, query_weight.to(dtype))
    features_k = hedgehog_features(y, key_weight.to(dtype))
    return features_q, blank(features_k, effective_padding(key_padding_mask), 2)
