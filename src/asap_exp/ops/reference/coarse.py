"""Coarse duals: Sinkhorn on a subset of the tokens, extended to all by one entropic transform.

C_q are some of the queries and C_k some of the keys; token c stands for w_c of them, and the
weights sum to n and to m. On the subset, from f^0 = 0,

    g^t_j = -LSE_{i in C_q}(S_ij + f^{t-1}_i + log w_i) + log(n / m)
    f^t_i = -LSE_{j in C_k}(S_ij + g^t_j + log w_j)

and for all tokens, with T updates in all,

    ready   f_i = -LSE_{j in C_k}(S_ij + g^{T-1}_j + log w_j),   0 if T = 1
    col     g_j = -LSE_{i in C_q}(S_ij + f^{T-1}_i + log w_i) + log(n / m).

Two plans follow: the closure of `ready`, with two passes over all pairs, and softmax_j(S + col),
with one. If the subset is everything and w = 1, both are the plan of T updates. Before the closure,
`ready` may be refined by further updates over all pairs. (They are this project's, not of ASAP.)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from asap_exp.ops.masking import blank, compute_dtype, effective_padding
from asap_exp.ops.reference import sinkhorn
from asap_exp.ops.reference._sizes import log_ratio
from asap_exp.ops.reference.sinkhorn import average_values, logits, only_valid, plan_from
from asap_exp.ops.subsets import Subset, at


class CoarseDuals(NamedTuple):
    """Predictions for all tokens: `ready` `[B, H, N]` of f^{T-1} and `col` `[B, H, M]` of g^T."""

    ready: Tensor
    col: Tensor


class Coarse(NamedTuple):
    """Queries and keys of the subset, blank of padding, and their logarithms of weights."""

    q: Tensor
    k: Tensor
    log_queries: Tensor
    log_keys: Tensor
    log_ratio: Tensor | float
    """log(n / m)."""


def coarse_duals(
    q: Tensor,
    k: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> CoarseDuals:
    part = coarse(q, k, subset, key_subset, key_padding_mask)
    row, col = duals_of(part, num_iters - 1, eps=eps, scale=scale)
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    ready = zero_dual(q) if num_iters == 1 else to_queries(q, col, part, **options)
    return CoarseDuals(ready, to_keys(k, row, part, **options))


def coarse_ready(
    q: Tensor,
    k: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Extend the subset's column dual to all queries, `[B, H, N]`; 0 at padded ones."""
    if num_iters == 1:
        return zero_dual(q)
    part = coarse(q, k, subset, key_subset, key_padding_mask)
    _, col = duals_of(part, num_iters - 1, eps=eps, scale=scale)
    return to_queries(q, col, part, eps=eps, scale=scale, key_padding_mask=key_padding_mask)


def coarse_col(
    q: Tensor,
    k: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Extend the subset's row dual to all keys, `[B, H, M]`; 0 at padded ones."""
    part = coarse(q, k, subset, key_subset, key_padding_mask)
    row, _ = duals_of(part, num_iters - 1, eps=eps, scale=scale)
    return to_keys(k, row, part, eps=eps, scale=scale, key_padding_mask=key_padding_mask)


def zero_dual(q: Tensor) -> Tensor:
    """Return the row dual `[B, H, N]` that T = 1 starts from."""
    return q.new_zeros(q.shape[:3], dtype=compute_dtype(q))


def to_queries(
    q: Tensor,
    col: Tensor,
    part: Coarse,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Return f `[B, H, N]` of all queries from g of the subset's keys; 0 at padded ones."""
    q = blank(q, key_padding_mask, 2)
    S = logits(q, part.k, eps=eps, scale=scale, mask=None)
    return blank(row_step(S, col, part), key_padding_mask, 2)


def to_keys(
    k: Tensor,
    row: Tensor,
    part: Coarse,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Return g `[B, H, M]` of all keys from f of the subset's queries; 0 at padded ones."""
    k = blank(k, key_padding_mask, 2)
    S = logits(part.q, k, eps=eps, scale=scale, mask=None)
    return blank(column_step(S, row, part), key_padding_mask, 2)


def coarse_attention(
    q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None, **options: Any
) -> Tensor:
    A = unblanked_plan(q, k, key_padding_mask=key_padding_mask, **options)
    return average_values(A, v, key_padding_mask)


def coarse_plan(q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None, **options: Any) -> Tensor:
    A = unblanked_plan(q, k, key_padding_mask=key_padding_mask, **options)
    return only_valid(A, key_padding_mask)


def unblanked_plan(
    q: Tensor,
    k: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None,
    num_iters: int,
    refine: int,
    one_pass: bool,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    implicit_steps: int | None = None,
) -> Tensor:
    """Return the plan `[B, H, N, M]`; any numbers in the rows of padded queries."""
    options: dict[str, Any] = {"eps": eps, "scale": scale}
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, mask=key_padding_mask, **options)
    options |= {"num_iters": num_iters, "key_padding_mask": key_padding_mask}
    if one_pass:
        return sinkhorn.one_pass(S, coarse_col(q, k, subset, key_subset, **options), padding)
    ready = coarse_ready(q, k, subset, key_subset, **options)
    return plan_from(S, ready, refine + 1, padding, implicit_steps=implicit_steps)


def coarse(
    q: Tensor,
    k: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    key_padding_mask: Tensor | None,
) -> Coarse:
    key_subset = subset if key_subset is None else key_subset
    n, m = q.shape[2], k.shape[2]
    log_queries = log_weight(subset, q, key_padding_mask)
    return Coarse(
        at(blank(q, key_padding_mask, 2), subset.tokens),
        at(blank(k, key_padding_mask, 2), key_subset.tokens),
        log_queries,
        log_weight(key_subset, k, key_padding_mask),
        log_ratio(n, m, log_queries),
    )


def log_weight(subset: Subset, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Return log w `[B, H, C]`, -inf where w is 0; the weights of `x` sum to its valid tokens.

    A padded token weighs 0. If all do, as in a sample without a valid token, all weigh the same.
    """
    weight = subset.weight.to(compute_dtype(x)).expand(*x.shape[:2], -1)
    num_valid: Tensor | int = x.shape[2]
    if (padding := effective_padding(key_padding_mask)) is not None:
        tokens = subset.tokens.expand(*x.shape[:2], -1)
        padded = padding[:, None].expand(*x.shape[:2], -1).gather(-1, tokens)
        weight = weight.masked_fill(padded, 0.0)
        num_valid = (~padding).sum(dim=-1)[:, None, None]
    weight = weight.masked_fill(~(weight > 0).any(dim=-1, keepdim=True), 1.0)
    weight = weight * (num_valid / weight.sum(dim=-1, keepdim=True))
    none = weight <= 0
    return weight.masked_fill(none, 1.0).log().masked_fill(none, float("-inf"))


def duals_of(part: Coarse, num_iters: int, *, eps: float, scale: float) -> tuple[Tensor, Tensor]:
    """Return f and g `[B, H, C]` of the subset after `num_iters` updates; g is 0 if there is none.

    Terms of weight 0 are left out of every sum.
    """
    S = logits(part.q, part.k, eps=eps, scale=scale, mask=None)
    row, col = S.new_zeros(S.shape[:-1]), S.new_zeros(S.shape[:-2] + S.shape[-1:])
    for _ in range(num_iters):
        col = column_step(S, row, part)
        row = row_step(S, col, part)
    return row, col


def column_step(S: Tensor, row: Tensor, part: Coarse) -> Tensor:
    """Return g from f of the subset's queries, which are the rows of S."""
    return part.log_ratio - torch.logsumexp(S + (row + part.log_queries)[..., :, None], dim=-2)


def row_step(S: Tensor, col: Tensor, part: Coarse) -> Tensor:
    """Return f from g of the subset's keys, which are the columns of S."""
    return -torch.logsumexp(S + (col + part.log_keys)[..., None, :], dim=-1)
