"""ESPFormer's attention: sorts along slices of a head, weighted by their costs.

With x_i = q_i / sqrt(D), y_j = k_j / sqrt(D) and slice l along the unit vector theta_l, by default
the axes l = 1 .. D,

    P_l[r, i] = softmax_i(-(s_(r) - s_i)^2 / tau),   s = x theta_l,  s_(1) >= s_(2) >= ...,

R_l likewise from y theta_l. Hard sorts are the permutations themselves, P_l[r, i] = 1 where i has
rank r, with the gradient of the soft ones ("straight through"). The plan of a slice is G_l = P_l^T
M R_l, where M is the identity: it matches rank r of the queries with rank r of the keys. Slices of
low cost get more weight:

    c_l = sum_ij |x_i - y_j| G_l[i, j],   w = softmax_l(-temperature c_l),   A = sum_l w_l G_l.

(Source: ESPFormer, expected sliced transport plans, arXiv 2502.07962.) As tau -> 0, the rows of A
sum to 1 and its columns to n/m; a soft sort achieves this only approximately. For n != m the
original interpolates the ranks; here M is the monotone coupling of n and m equal atoms, which
preserves these sums (this project's choice). Slices are computed a few at a time and recomputed for
the gradient, so memory is O(n m) per head.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from asap_exp.ops.masking import blank, compute_dtype, effective_padding
from asap_exp.ops.reference._sizes import as_many
from asap_exp.ops.reference.logit_rows import root
from asap_exp.ops.transforms import transformed

Sorts: TypeAlias = tuple[float, bool, Tensor | None]
"""tau, whether sorts are hard, and the padding `[B, N]`."""

AT_ONCE = 2**16
"""Maximum number of plan entries per head computed at a time; a single slice may have more."""


def espformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: float,
    tau: float,
    key_padding_mask: Tensor | None,
    theta: Tensor | None = None,
    hard: bool = False,
) -> Tensor:
    """Compute A v `[B, H, N, width of v]` in v's dtype; 0 at padded positions.

    `theta` `[H, L, D]` are unit vectors of the slices, the axes if None; `hard` sorts hard.
    """
    x, y = points(q, key_padding_mask), points(k, key_padding_mask)
    padding = effective_padding(key_padding_mask)
    values = blank(v, key_padding_mask, 2).to(x.dtype)
    some = max(1, AT_ONCE // (q.shape[2] * k.shape[2]))
    sliced = (projected(t, theta).split(some, dim=-2) for t in (x, y))
    slices = [*zip(*sliced, strict=True)]
    sorts = (tau, hard, padding)

    distances = centred_distances(x, y)
    costs = [recomputed(cost, *pair, distances, sorts) for pair in slices]
    w = torch.softmax(-temperature * torch.cat(costs, dim=-1), dim=-1)
    out = values.new_zeros(*x.shape[:3], values.shape[3])
    for pair, weights in zip(slices, w.split(some, dim=-1), strict=True):
        out = out + recomputed(average, *pair, values, weights, sorts)
    return blank(out, key_padding_mask, 2).to(v.dtype)


def espformer_plan(q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """Compute A `[B, H, N, M]`, the weights of `espformer_attention`; 0 at padded positions."""
    keys = torch.eye(k.shape[2], dtype=compute_dtype(k), device=k.device)
    return espformer_attention(q, k, keys.expand(*k.shape[:2], -1, -1), **options)


def points(x: Tensor, mask: Tensor | None) -> Tensor:
    return blank(x, mask, 2).to(compute_dtype(x)) * x.shape[3] ** -0.5


def centred_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j| `[B, H, N, M]` without the mean, which changes no weight of a slice.

    Every G_l has mass n: a constant adds the same to all costs, and is most of them.
    """
    if transformed():  # cdist has no derivative that goes forward, and this is D times as large
        distances = root((x[..., :, None, :] - y[..., None, :, :]).square().sum(dim=-1))
    else:
        distances = torch.cdist(x, y)
    return distances - distances.detach().mean(dim=(-1, -2), keepdim=True)


def projected(x: Tensor, theta: Tensor | None) -> Tensor:
    """Return the coordinates `[B, H, L, N]` of points `[B, H, N, D]` along the slices."""
    return x.transpose(-1, -2) if theta is None else theta @ x.transpose(-1, -2)


def cost(x: Tensor, y: Tensor, distances: Tensor, sorts: Sorts) -> Tensor:
    """Return costs c `[B, H, L]` of slices from projections `[B, H, L, N]` and `[B, H, L, M]`."""
    P, MR = both_sorts(x, y, *sorts)
    return ((P @ distances[:, :, None]) * MR).sum(dim=(-1, -2))


def average(x: Tensor, y: Tensor, values: Tensor, weights: Tensor, sorts: Sorts) -> Tensor:
    """Return sum_l w_l G_l v over these slices, `[B, H, N, width of v]`."""
    P, MR = both_sorts(x, y, *sorts)
    ranked = (MR @ values[:, :, None]) * weights[..., None, None]
    return (P.transpose(-1, -2) @ ranked).sum(dim=2)


def both_sorts(
    x: Tensor, y: Tensor, tau: float, hard: bool, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return P_l `[B, H, L, N, N]` and M R_l `[B, H, L, N, M]`."""
    P, R = (sort_matrix(s, tau, hard, padding) for s in (x, y))
    n, m = x.shape[-1], y.shape[-1]
    return P, R if as_many(n, m) else coupling(n, m).to(R) @ R


def sort_matrix(s: Tensor, tau: float, hard: bool, padding: Tensor | None) -> Tensor:
    """Return soft or hard permutations of s `[B, H, L, N]`: one row per rank, descending.

    Rows beyond the valid tokens are 0, and so are the columns of padded ones.
    """
    absent = None if padding is None else padding[:, None, None]
    shown = s if absent is None else s.masked_fill(absent, float("-inf"))
    ranked, order = shown.sort(dim=-1, descending=True)
    beyond = None
    if absent is not None:
        num_valid = (~absent).sum(dim=-1, keepdim=True)
        beyond = torch.arange(s.shape[-1], device=s.device) >= num_valid
        ranked = ranked.masked_fill(beyond, 0.0)
    X = -(ranked[..., :, None] - s[..., None, :]).square() / tau
    if absent is not None:
        X = X.masked_fill(absent[..., None, :], float("-inf"))
    P = torch.softmax(X, dim=-1)
    if hard:
        exact = torch.zeros_like(P).scatter(-1, order[..., None], 1.0)
        P = exact + (P - P.detach())
    return P if beyond is None else P.masked_fill(beyond[..., None], 0.0)


def coupling(n: int, m: int) -> Tensor:
    """Return n times the monotone plan of n and m equal atoms, `[n, m]`; its rows sum to 1."""
    r, s = torch.arange(n)[:, None], torch.arange(m)
    upper, lower = torch.minimum((r + 1) * m, (s + 1) * n), torch.maximum(r * m, s * n)
    return (upper - lower).clamp(min=0) / m


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call `function`, and recompute it for the gradient instead of keeping its tensors.

    The state of the random generator is not saved: nothing here is random, and a CUDA graph could
    not read it. `torch.func` allows no recomputation.
    """
    if transformed():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
