"""The launches of the backward pass: on chip in one, else passes over tiles that store no logits.

The adjoints and their notation are those of `short`.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from asap_exp.ops.kernels.launch import Problem, head_strides, strides
from asap_exp.ops.kernels.sinkhorn import logits_in_registers, tiled_gradient
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block

RANK_PRECISION = {torch.float32: "ieee", torch.float16: "tf32x3", torch.bfloat16: "tf32"}
"""Of the products that sum the updates' share of the gradient: finer than the inputs' own."""


RANK_UPDATES = 32
"""Of more updates those products do not fit on chip, and each update takes its own exponentials."""


class Gradients(NamedTuple):
    """Of q, k, v and f^0."""

    q: Tensor
    k: Tensor
    v: Tensor
    start: Tensor


def on_chip(
    problem: Problem, grad_out: Tensor, rows: Tensor, cols: Tensor, grads: Gradients
) -> None:
    p = problem
    logits_in_registers.backward_kernel[(p.programs,)](
        p.q, p.k, p.v, grad_out, p.padding, rows, cols, *grads,
        *strides(p.q, p.k, p.v, grad_out, *grads[:3]),
        p.heads, p.n, p.m, p.num_iters, p.to_log2, p.log2_ratio, p.slope,
        **p.values, BLOCK_N=block(p.n), BLOCK_M=block(p.m),
        num_warps=p.on_chip_warps(2, 8), **EVERY_LAUNCH,
    )  # fmt: skip


def in_passes(
    problem: Problem, grad_out: Tensor, rows: Tensor, cols: Tensor, grads: Gradients
) -> None:
    # With a g^0 = g^1 - log(n / m), A^0 has the form of every other A^t.
    cols = torch.cat([cols[:, :, :1] - problem.log2_ratio, cols], dim=2)
    delta, grad_col = through_values(problem, grad_out, rows[:, :, -1], cols[:, :, -1], grads.v)
    row_weights, col_weights = through_updates(problem, rows, cols, grad_col, grads.start)
    query_side = Side(problem.q, grad_out, rows, row_weights)
    key_side = Side(problem.k, problem.v, cols, col_weights)
    through_logits(problem, query_side, key_side, delta, grads.q, x_is_query=True)
    through_logits(problem, key_side, query_side, delta, grads.k, x_is_query=False)


def through_values(
    problem: Problem, grad_out: Tensor, row: Tensor, col: Tensor, grad_v: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of v; delta `[B, H, N]`, by which dX = A (dA - delta), and dg^T."""
    p = problem
    delta, grad_col = torch.empty_like(row), torch.empty_like(col)
    x_block, y_block, warps = p.gradient_tile
    tiled_gradient.delta_kernel[(p.programs * triton.cdiv(p.n, x_block),)](
        p.q, p.k, p.v, grad_out, row, col, p.padding, delta,
        *strides(p.q, p.k, p.v, grad_out), *head_strides(row, col, delta),
        p.heads, p.n, p.m, p.to_log2,
        **p.values, BLOCK_N=x_block, BLOCK_M=y_block, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip
    tiled_gradient.value_kernel[(p.programs * triton.cdiv(p.m, x_block),)](
        p.q, p.k, p.v, grad_out, delta, row, col, p.padding, grad_v, grad_col,
        *strides(p.q, p.k, p.v, grad_out, grad_v), *head_strides(delta, row, col, grad_col),
        p.heads, p.n, p.m, p.to_log2,
        **p.values, BLOCK_N=y_block, BLOCK_M=x_block, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip
    return delta, grad_col


def through_updates(
    problem: Problem, rows: Tensor, cols: Tensor, grad_col: Tensor, grad_start: Tensor
) -> tuple[Tensor, Tensor]:
    """df^t `[B, H, T, N]` (0 for t = 0) and w^t `[B, H, T, M]`; writes the gradient of f^0."""
    p = problem
    row_weights, col_weights = torch.empty_like(rows[:, :, 1:]), torch.empty_like(cols[:, :, 1:])
    change = cols[:, :, -1] - cols[:, :, -2] - p.log2_ratio
    torch.mul(grad_col, change.exp2_(), out=col_weights[:, :, -1])
    for t in range(p.num_iters - 1, 0, -1):
        f, g, df = rows[:, :, t], cols[:, :, t], row_weights[:, :, t]
        adjoint(p, p.q, p.k, f, g, col_weights[:, :, t], df, x_is_query=True)
        earlier, w = cols[:, :, t - 1], col_weights[:, :, t - 1]
        adjoint(p, p.k, p.q, g, f, df, w, x_is_query=False, earlier_x=earlier)
    f, g, w = rows[:, :, 0], cols[:, :, 0], col_weights[:, :, 0]
    adjoint(p, p.q, p.k, f, g, w, grad_start, x_is_query=True)
    row_weights[:, :, 0] = 0.0
    return row_weights, col_weights


def adjoint(
    problem: Problem,
    x: Tensor,
    y: Tensor,
    dual_x: Tensor,
    dual_y: Tensor,
    weight_y: Tensor,
    result: Tensor,
    *,
    x_is_query: bool,
    earlier_x: Tensor | None = None,
) -> None:
    """result = -sum_y A_xy weight_y, times exp(dual_x - earlier_x) m / n where that is given."""
    p = problem
    x_block, y_block, warps = p.tile
    num_x, num_y = x.shape[2], y.shape[2]
    tiled_gradient.adjoint_kernel[(p.programs * triton.cdiv(num_x, x_block),)](
        x, y, dual_x, dual_y, weight_y, earlier_x, p.padding, result,
        *strides(x, y), *head_strides(dual_x, dual_y, weight_y, earlier_x, result),
        p.heads, num_x, num_y, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_X=x_block, BLOCK_Y=y_block,
        X_IS_QUERY=x_is_query, RESCALE=earlier_x is not None, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


class Side(NamedTuple):
    """Queries or keys, what meets them in dA = grad_out v', their duals and adjoint weights."""

    tokens: Tensor
    values: Tensor
    duals: Tensor
    weights: Tensor


def through_logits(
    problem: Problem, x: Side, y: Side, delta: Tensor, grad_x: Tensor, *, x_is_query: bool
) -> None:
    """Writes the gradient of x's tokens."""
    p = problem
    x_block, y_block, warps = p.gradient_tile
    num_x, num_y = x.tokens.shape[2], y.tokens.shape[2]
    by_rank = p.num_iters <= RANK_UPDATES
    drift = torch.maximum(largest_change(x.duals), largest_change(y.duals))
    if not by_rank:
        drift.fill_(torch.inf)
    tiled_gradient.logit_kernel[(p.programs * triton.cdiv(num_x, x_block),)](
        x.tokens, y.tokens, x.values, y.values, delta,
        x.duals, y.duals, x.weights, y.weights, drift, p.padding, grad_x,
        *strides(x.tokens, y.tokens, x.values, y.values, grad_x),
        p.heads, num_x, num_y, p.num_iters, p.to_log2, p.slope,
        **p.values, BLOCK_T=block(p.num_iters if by_rank else 1), BLOCK_X=x_block, BLOCK_Y=y_block,
        RANK_PRECISION=RANK_PRECISION[p.q.dtype], X_IS_QUERY=x_is_query, num_warps=warps,
        **EVERY_LAUNCH,
    )  # fmt: skip


def largest_change(duals: Tensor) -> Tensor:
    """By how much a dual differs from the last one, `[B, H]`, in units of log 2."""
    return (duals - duals[:, :, -1:]).abs().amax(dim=(2, 3))
