"""Finite-T Sinkhorn in the log domain, and the closure of a row dual.

For logits S_ij = scale <q_i, k_j> / eps, with n valid queries and m valid keys:

    column step   g_j = -LSE_i(S_ij + f_i) + log(n / m)
    row step      f_i = -LSE_j(S_ij + g_j)

T updates apply both steps T times, from f = 0; the row step comes last. The plan is
A = exp(S + f + g). Source: ASAP (arXiv 2605.12879), entropic optimal transport with uniform
marginals.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from asap_exp.ops.masking import absent, blank, compute_dtype, effective_padding
from asap_exp.ops.reference._sizes import as_many, log_ratio
from asap_exp.ops.reference.exponentials import log_sum_exp, softmax
from asap_exp.ops.reference.implicit import implicit_gradient


class SinkhornDuals(NamedTuple):
    """Duals in logit units: `ready` and `row` `[B, H, N]`, `col` `[B, H, M]`.

    `ready` is f^{T-1}, whose closure is the plan of T updates; `row` is f^T and `col` is g^T.
    """

    ready: Tensor
    row: Tensor
    col: Tensor


def logits(q: Tensor, k: Tensor, *, eps: float, scale: float, mask: Tensor | None) -> Tensor:
    """Return S `[B, H, N, M]` in the compute dtype; finite at padded positions."""
    dtype = compute_dtype(q)
    q = blank(q, mask, 2).to(dtype)
    k = blank(k, mask, 2).to(dtype)
    return (q * (scale / eps)) @ k.transpose(-1, -2)


def column_step(S: Tensor, row_dual: Tensor, padding: Tensor | None) -> Tensor:
    """Return g `[B, H, M]` from f `[B, H, N]`."""
    f = absent(row_dual, padding)
    g = -log_sum_exp(S + f[..., :, None], dim=-2)
    n, m = S.shape[-2:]
    return g if as_many(n, m) else g + log_ratio(n, m, g)


def row_step(S: Tensor, col_dual: Tensor, padding: Tensor | None) -> Tensor:
    """Return f `[B, H, N]` from g `[B, H, M]`."""
    g = absent(col_dual, padding)
    return -log_sum_exp(S + g[..., None, :], dim=-1)


def update(
    S: Tensor,
    row_dual: Tensor,
    num_iters: int,
    padding: Tensor | None,
    relaxation: Tensor | float | None = None,
) -> Tensor:
    """Return f after `num_iters` further updates from `row_dual`.

    With a `relaxation` w, one number or one per head `[H]`, each update goes to f + w (F(f) - f),
    where F is a plain update (Thibault, Chizat, Dossal and Papadakis, "Overrelaxed Sinkhorn-Knopp
    algorithm for regularized optimal transport", 2017, who relax both duals).
    """
    if isinstance(relaxation, Tensor):
        relaxation = relaxation.to(S.dtype)[:, None]
    for _ in range(num_iters):
        updated = row_step(S, column_step(S, row_dual, padding), padding)
        if relaxation is not None:
            updated = row_dual + relaxation * (updated - row_dual)
        row_dual = updated
    return row_dual


def closure(S: Tensor, row_dual: Tensor, padding: Tensor | None) -> Tensor:
    """Return the plan `[B, H, N, M]` of one pass with the column step of `row_dual`."""
    return one_pass(S, column_step(S, row_dual, padding), padding)


def one_pass(S: Tensor, col_dual: Tensor, padding: Tensor | None) -> Tensor:
    """Return the plan softmax_j(S + g) `[B, H, N, M]` of the column dual g `[B, H, M]`."""
    return softmax(S + absent(col_dual, padding)[..., None, :])


class ImplicitPlan(torch.autograd.Function):
    """Autograd function of a closure with the implicit gradient in S; keeps the plan alone.

    The dual gets no gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(S: Tensor, ready: Tensor, padding: Tensor | None, num_steps: int) -> Tensor:
        return closure(S, ready, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.padding, ctx.num_steps = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (A,) = ctx.saved_tensors
        dS = implicit_gradient(blank(A, ctx.padding, 2), gradient, ctx.num_steps)
        return dS, None, None, None


def starting_dual(S: Tensor) -> Tensor:
    """Return f^0 = 0."""
    return S.new_zeros(S.shape[:-1])


def average_values(A: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return A v in v's dtype, computed in A's dtype; 0 at padded queries."""
    return blank(A @ blank(v, mask, 2).to(A.dtype), mask, 2).to(v.dtype)


def sinkhorn_duals(
    q: Tensor,
    k: Tensor,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> SinkhornDuals:
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    ready = update(S, starting_dual(S), num_iters - 1, padding)
    col = column_step(S, ready, padding)
    row = row_step(S, col, padding)
    return SinkhornDuals(*(blank(dual, key_padding_mask, 2) for dual in (ready, row, col)))


def sinkhorn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    gradient_updates: int | None = None,
    implicit_steps: int | None = None,
) -> Tensor:
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    A = plan_from(S, starting_dual(S), num_iters, padding, gradient_updates, implicit_steps)
    return average_values(A, v, key_padding_mask)


def plan_from(
    S: Tensor,
    row_dual: Tensor,
    num_iters: int,
    padding: Tensor | None,
    gradient_updates: int | None = None,
    implicit_steps: int | None = None,
) -> Tensor:
    """Return the plan `[B, H, N, M]` of `num_iters` updates from `row_dual` `[B, H, N]`.

    Its gradient is that of all, of the last `gradient_updates`, or the implicit one.
    """
    if implicit_steps is not None:
        with torch.no_grad():
            ready = update(S.detach(), row_dual.detach(), num_iters - 1, padding)
        return ImplicitPlan.apply(S, ready, padding, implicit_steps)
    if gradient_updates is not None and gradient_updates < num_iters:
        with torch.no_grad():  # which a derivative that goes forward would pass
            row_dual = update(S.detach(), row_dual.detach(), num_iters - gradient_updates, padding)
        num_iters = gradient_updates
    return closure(S, update(S, row_dual, num_iters - 1, padding), padding)


def relaxed_sinkhorn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_iters: int,
    relaxation: float | None,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    ready = update(S, starting_dual(S), num_iters - 1, padding, relaxation)
    return average_values(closure(S, ready, padding), v, key_padding_mask)


def closure_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_dual: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    row_dual = blank(row_dual, key_padding_mask, 2).to(S.dtype)
    return average_values(closure(S, row_dual, padding), v, key_padding_mask)


def attention_pass(
    q: Tensor, k: Tensor, v: Tensor, col: Tensor, row: Tensor | None, slope: float
) -> Tensor:
    """Return softmax_j(S + col) v; `row` is unused."""
    S = logits(q, k, eps=1.0, scale=slope, mask=None)
    return average_values(torch.softmax(S + col[..., None, :], dim=-1), v, None)


def column_pass(q: Tensor, k: Tensor, row: Tensor, slope: float) -> Tensor:
    """Return g `[B, H, M]` from f `[B, H, N]`."""
    return column_step(logits(q, k, eps=1.0, scale=slope, mask=None), row, None)


def attention_plan(
    q: Tensor,
    k: Tensor,
    row_dual: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    row_dual = blank(row_dual, key_padding_mask, 2).to(S.dtype)
    return only_valid(closure(S, row_dual, padding), key_padding_mask)


def one_pass_plan(
    q: Tensor,
    k: Tensor,
    col_dual: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    col_dual = blank(col_dual, key_padding_mask, 2).to(S.dtype)
    return only_valid(one_pass(S, col_dual, padding), key_padding_mask)


def only_valid(A: Tensor, mask: Tensor | None) -> Tensor:
    """Return the plan `[B, H, N, M]`, 0 at padded queries and keys."""
    return blank(blank(A, mask, 2), mask, 3)
