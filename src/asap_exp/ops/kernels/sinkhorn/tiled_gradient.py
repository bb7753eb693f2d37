"""The gradient of finite-T Sinkhorn attention in passes over tiles; any length, no logits stored.

The adjoints are as in `logits_in_registers`. As in `tiled`, each kernel anchors a block of one
side's tokens (x) and streams the other's (y). Letters: see `kernels.tiles`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Duals, Launch, head_strides, strides
from asap_exp.ops.kernels.sinkhorn.tiled import head_and_tokens, plan_tile
from asap_exp.ops.kernels.sinkhorn.update_factors import (
    GROUP,
    RUN,
    Factors,
    load_factors,
    packed_factors,
    product_of_halves,
)
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    block,
    load_tile,
    product,
    store_tile,
    valid_tokens,
)
from asap_exp.ops.products import ONE_PASS, THREE_PASSES

NONE = (None, None, None)
"""In the place of factors."""

RANK_PRECISION = {torch.float16: THREE_PASSES, torch.bfloat16: ONE_PASS}
"""Precision of the products that sum the updates' contributions, finer than the inputs'."""

RANK_BLOCK = 32
"""Most factors of a token that are multiplied at once, so that tiles stay small."""

RANK_UPDATES = 32
"""Maximum number of updates whose products fit on chip; with more, each has its exponentials.

Each has two factors, so these fill two blocks of `RANK_BLOCK`.
"""


# fmt: off
@triton.jit
def delta_kernel(
    q, k, v, grad_out, row, col, padding, delta,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, go_b, go_h, go_n,
    row_stride, col_stride, delta_stride,
    heads, n, m, to_log2,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Compute delta_i = sum_j A_ij <grad_out_i, v_j>.

    Flash attention uses <grad_out, out> instead. But `out` was computed from a rounded A, and for
    logits of several hundred the updates' adjoints would amplify the error in the row sums of dX
    tenfold.
    """
    head, i = head_and_tokens(n, BLOCK_N)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + b * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    # [BLOCK_N, BLOCK_V]
    do_tile = load_tile(grad_out + b * go_b + h * go_h, i, valid_i, go_n, V_WIDTH, BLOCK_V)
    f = tl.load(row + head * row_stride + i, mask=valid_i, other=float("-inf"))
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, m, BLOCK_M):
        j = first + tl.arange(0, BLOCK_M)
        valid_j = valid_tokens(padding, b, j, m, HAS_PADDING)
        # [BLOCK_M, BLOCK_D]
        k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
        # [BLOCK_N, BLOCK_M]
        S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
        g = tl.load(col + head * col_stride + j, mask=valid_j, other=float("-inf"))
        # [BLOCK_M, BLOCK_V]
        v_tile = load_tile(v, j, valid_j, v_n, V_WIDTH, BLOCK_V)
        # [BLOCK_N, BLOCK_M]
        dA = product(do_tile, tl.trans(v_tile), V_OPERAND, PRECISION)
        total += tl.sum(plan_tile(S, to_log2, f, g, True) * dA, axis=1)
    tl.store(delta + head * delta_stride + i, total, mask=i < n)


# fmt: off
@triton.jit
def value_kernel(
    q, k, v, grad_out, delta, row, col, padding, grad_v, grad_col, grad_k,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, go_b, go_h, go_n, gv_b, gv_h, gv_n,
    gk_b, gk_h, gk_n, delta_stride, row_stride, col_stride, grad_col_stride,
    heads, n, m, to_log2, slope,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, OF_KEYS: tl.constexpr,
):
    # fmt: on
    """Compute the gradients of v and of g^T; one program per block of keys.

    With OF_KEYS that of k too: without updates before g^T there is no other part of it.
    """
    head, j = head_and_tokens(m, BLOCK_M)
    b, h = head // heads, head % heads
    valid_j = valid_tokens(padding, b, j, m, HAS_PADDING)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k + b * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
    # [BLOCK_M, BLOCK_V]
    v_tile = load_tile(v + b * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
    g = tl.load(col + head * col_stride + j, mask=valid_j, other=float("-inf"))
    q += b * q_b + h * q_h
    grad_out += b * go_b + h * go_h
    # [BLOCK_M, BLOCK_V]
    dv = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    # [BLOCK_M]
    dg = tl.zeros([BLOCK_M], tl.float32)
    # [BLOCK_M, BLOCK_D]
    dk = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
        # [BLOCK_N, BLOCK_D]
        q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
        # [BLOCK_M, BLOCK_N]
        S = product(k_tile, tl.trans(q_tile), OPERAND, PRECISION)
        f = tl.load(row + head * row_stride + i, mask=valid_i, other=float("-inf"))
        # [BLOCK_M, BLOCK_N]
        A = plan_tile(S, to_log2, g, f, False)
        # [BLOCK_N, BLOCK_V]
        do_tile = load_tile(grad_out, i, valid_i, go_n, V_WIDTH, BLOCK_V)
        dv += product(A, do_tile, V_OPERAND, PRECISION)
        # [BLOCK_M, BLOCK_N]
        dA = product(v_tile, tl.trans(do_tile), V_OPERAND, PRECISION)
        dA -= tl.load(delta + head * delta_stride + i, mask=valid_i, other=0.0)[None, :]
        dS = A * dA
        dg += tl.sum(dS, axis=1)
        if OF_KEYS:
            dk += product(dS, q_tile, OPERAND, PRECISION)
    store_tile(grad_v + b * gv_b + h * gv_h, j, j < m, gv_n, dv, V_WIDTH, BLOCK_V)
    tl.store(grad_col + head * grad_col_stride + j, dg, mask=j < m)
    if OF_KEYS:
        store_tile(grad_k + b * gk_b + h * gk_h, j, j < m, gk_n, dk * slope, D, BLOCK_D)


# fmt: off
@triton.jit
def adjoint_kernel(
    x, y, dual_x, dual_y, weight_y, earlier_x, padding, result,
    x_b, x_h, x_n, y_b, y_h, y_n,
    dual_x_stride, dual_y_stride, weight_y_stride, earlier_x_stride, result_stride,
    heads, num_x, num_y, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    X_IS_QUERY: tl.constexpr, RESCALE: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Compute result_x = -sum_y exp(S + dual_x + dual_y) weight_y.

    RESCALE turns dg^(t+1) into w^t = dg^(t+1) exp(g^(t+1) - g^t) m / n, where `dual_x` is g^(t+1)
    and `earlier_x` g^t.
    """
    head, i = head_and_tokens(num_x, BLOCK_X)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
    # [BLOCK_X, BLOCK_D]
    x_tile = load_tile(x + b * x_b + h * x_h, i, valid_i, x_n, D, BLOCK_D)
    fx = tl.load(dual_x + head * dual_x_stride + i, mask=valid_i, other=float("-inf"))
    y += b * y_b + h * y_h
    # [BLOCK_X]
    total = tl.zeros([BLOCK_X], tl.float32)
    for first in range(0, num_y, BLOCK_Y):
        j = first + tl.arange(0, BLOCK_Y)
        valid_j = valid_tokens(padding, b, j, num_y, HAS_PADDING)
        # [BLOCK_Y, BLOCK_D]
        y_tile = load_tile(y, j, valid_j, y_n, D, BLOCK_D)
        # [BLOCK_X, BLOCK_Y]
        S = product(x_tile, tl.trans(y_tile), OPERAND, PRECISION)
        fy = tl.load(dual_y + head * dual_y_stride + j, mask=valid_j, other=float("-inf"))
        w = tl.load(weight_y + head * weight_y_stride + j, mask=valid_j, other=0.0)
        total += tl.sum(plan_tile(S, to_log2, fx, fy, X_IS_QUERY) * w[None, :], axis=1)
    if RESCALE:
        earlier = tl.load(earlier_x + head * earlier_x_stride + i, mask=valid_i, other=0.0)
        total *= tl.exp2(tl.where(valid_i, fx - earlier - log2_ratio, 0.0))
    tl.store(result + head * result_stride + i, -total, mask=i < num_x)


@triton.jit
def relative(earlier, dual, valid):
    """Return exp(earlier - dual), 0 where not valid; `earlier` points to a dual."""
    before = tl.load(earlier, mask=valid, other=float("-inf"))
    return tl.exp2(before - tl.where(valid, dual, 0.0))


# fmt: off
@triton.jit
def through_values_of(
    x_tile, vx_tile, y, value_y, delta, delta_x, unit, dual_y, padding, b, j,
    num_y, num_iters, y_n, vy_n,
    D: tl.constexpr, V_WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    X_IS_QUERY: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Return the tokens `j` of y, S, (dA - delta) unit, their last dual, and which exist.

    `delta_x` is that of the queries, if they are x, times unit.
    """
    valid_j = valid_tokens(padding, b, j, num_y, HAS_PADDING)
    # [BLOCK_Y, BLOCK_D]
    y_tile = load_tile(y, j, valid_j, y_n, D, BLOCK_D)
    # [BLOCK_Y, BLOCK_V]
    vy_tile = load_tile(value_y, j, valid_j, vy_n, V_WIDTH, BLOCK_V)
    # [BLOCK_X, BLOCK_Y]
    S = product(x_tile, tl.trans(y_tile), OPERAND, PRECISION)
    dS = product(vx_tile, tl.trans(vy_tile), V_OPERAND, PRECISION)
    if X_IS_QUERY:
        dS = dS * unit - delta_x[:, None]
    else:
        dS = dS * unit - (tl.load(delta + j, mask=valid_j, other=0.0) * unit)[None, :]
    fy = tl.load(dual_y + num_iters * num_y + j, mask=valid_j, other=float("-inf"))
    return y_tile, S, dS, fy, valid_j


# fmt: off
@triton.jit
def logit_kernel(
    x, y, value_x, value_y, delta, dual_x, dual_y, weight_x, weight_y, factors_x, factors_y,
    drift, unit, begin, anchor, padding, grad_x,
    x_b, x_h, x_n, y_b, y_h, y_n, vx_b, vx_h, vx_n, vy_b, vy_h, vy_n, gx_b, gx_h, gx_n,
    heads, num_x, num_y, num_iters, to_log2, slope,
    D: tl.constexpr, V_WIDTH: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, RANK_PRECISION: tl.constexpr,
    X_IS_QUERY: tl.constexpr, HAS_PADDING: tl.constexpr, FEW: tl.constexpr,
    HALVES: tl.constexpr, RANK: tl.constexpr, MORE_RANK: tl.constexpr, GROUP_RANK: tl.constexpr,
):
    # fmt: on
    """Compute grad_x = slope * sum_y dS_xy y, for x = q (values grad_out) or x = k (values v).

    The duals hold t = 0 .. T (`[.., T + 1, tokens]`), the weights w^t and df^t hold t = 0 .. T - 1.
    The sum over t has rank 2 T, with p^t_i = exp(f^t_i - f^T_i) and r^t_j = exp(g^t_j - g^T_j):

        sum_t A^t_ij (w^t_j + df^t_i) = A^T_ij sum_t (p^t_i (r^t_j w^t_j) + (p^t_i df^t_i) r^t_j).

    This form is used if `drift`, the head's largest such exponent, is small enough; otherwise each
    t takes its own exponential. With HALVES there are the factors of `update_factors` in place of
    the weights, with which dS is `unit` times as large: 2 T of a token, multiplied in a block of
    RANK and one of MORE_RANK, or none for 0; or, in groups of updates from `begin` on, each with
    the exponentials of its `anchor`, in blocks of GROUP_RANK. FEW is T, or 2 if T is larger:
    the sum of one update takes no product of matrices.
    """
    head, i = head_and_tokens(num_x, BLOCK_X)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
    # [BLOCK_X, BLOCK_D]
    x_tile = load_tile(x + b * x_b + h * x_h, i, valid_i, x_n, D, BLOCK_D)
    # [BLOCK_X, BLOCK_V]
    vx_tile = load_tile(value_x + b * vx_b + h * vx_h, i, valid_i, vx_n, V_WIDTH, BLOCK_V)
    y += b * y_b + h * y_h
    value_y += b * vy_b + h * vy_h
    dual_x += head * (num_iters + 1) * num_x
    dual_y += head * (num_iters + 1) * num_y
    weight_x += head * num_iters * num_x
    weight_y += head * num_iters * num_y
    fx = tl.load(dual_x + num_iters * num_x + i, mask=valid_i, other=float("-inf"))
    if HALVES:
        to_unit = tl.load(unit + head)
        begin += head * num_iters
        anchor += head * num_iters
        factors_x += head * num_iters * num_x * 2
        factors_y += head * num_iters * num_y * 2
    delta_x = fx  # of keys, not read
    if X_IS_QUERY:
        delta += head * num_x
        delta_x = tl.load(delta + i, mask=valid_i, other=0.0)
    else:
        delta += head * num_y
    t = tl.arange(0, BLOCK_T)
    c = tl.arange(0, RANK)
    if MORE_RANK:
        more_c = RANK + tl.arange(0, MORE_RANK)
    # [BLOCK_X, BLOCK_D]
    grad = tl.zeros([BLOCK_X, BLOCK_D], tl.float32)
    # Each way has a loop of its own: a branch within would keep the products from overlapping.
    if HALVES:
        if tl.load(anchor) == num_iters:
            # [BLOCK_X, RANK]
            of_x = load_factors(factors_x, c[None, :], i[:, None], num_x, num_iters)
            if MORE_RANK:
                # [BLOCK_X, MORE_RANK]
                more_x = load_factors(factors_x, more_c[None, :], i[:, None], num_x, num_iters)
            for first in range(0, num_y, BLOCK_Y):
                j = first + tl.arange(0, BLOCK_Y)
                y_tile, S, dS, fy, valid_j = through_values_of(
                    x_tile, vx_tile, y, value_y, delta, delta_x * to_unit, to_unit, dual_y, padding,
                    b, j, num_y, num_iters, y_n, vy_n,
                    D, V_WIDTH, BLOCK_D, BLOCK_V, OPERAND, V_OPERAND, PRECISION,
                    X_IS_QUERY, HAS_PADDING,
                )  # fmt: skip
                # [RANK, BLOCK_Y]
                of_y = load_factors(factors_y, c[:, None], j[None, :], num_y, num_iters)
                dS = product_of_halves(of_x, of_y, dS)
                if MORE_RANK:
                    # [MORE_RANK, BLOCK_Y]
                    of_y = load_factors(factors_y, more_c[:, None], j[None, :], num_y, num_iters)
                    dS = product_of_halves(more_x, of_y, dS)
                dS *= plan_tile(S, to_log2, fx, fy, X_IS_QUERY)
                grad += product(dS, y_tile, OPERAND, PRECISION)
        else:
            c_of_group = tl.arange(0, GROUP_RANK)
            for first in range(0, num_y, BLOCK_Y):
                j = first + tl.arange(0, BLOCK_Y)
                y_tile, S, dS, fy, valid_j = through_values_of(
                    x_tile, vx_tile, y, value_y, delta, delta_x * to_unit, to_unit, dual_y, padding,
                    b, j, num_y, num_iters, y_n, vy_n,
                    D, V_WIDTH, BLOCK_D, BLOCK_V, OPERAND, V_OPERAND, PRECISION,
                    X_IS_QUERY, HAS_PADDING,
                )  # fmt: skip
                dS *= plan_tile(S, to_log2, fx, fy, X_IS_QUERY)
                end = num_iters
                while end > 0:
                    start = tl.load(begin + end - 1)
                    a = tl.load(anchor + end - 1)
                    of_group = 2 * start + c_of_group
                    # [BLOCK_X, GROUP_RANK]
                    of_x = load_factors(factors_x, of_group[None, :], i[:, None], num_x, end)
                    # [GROUP_RANK, BLOCK_Y]
                    of_y = load_factors(factors_y, of_group[:, None], j[None, :], num_y, end)
                    # [BLOCK_X, BLOCK_Y]
                    of_updates = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
                    of_updates = product_of_halves(of_x, of_y, of_updates)
                    fx_a = tl.load(dual_x + a * num_x + i, mask=valid_i, other=float("-inf"))
                    fy_a = tl.load(dual_y + a * num_y + j, mask=valid_j, other=float("-inf"))
                    dS += of_updates * plan_tile(S, to_log2, fx_a, fy_a, X_IS_QUERY)
                    end = start
                grad += product(dS, y_tile, OPERAND, PRECISION)
        grad *= 1.0 / to_unit
    else:
        if tl.load(drift + head) < 24.0:
            if FEW == 1:
                # [BLOCK_X]
                px = relative(dual_x + i, fx, valid_i)
                wx = px * tl.load(weight_x + i, mask=valid_i, other=0.0)
            else:
                x_t = t[None, :] * num_x + i[:, None]
                x_mask = valid_i[:, None] & (t < num_iters)[None, :]
                # [BLOCK_X, BLOCK_T], negative: the sum is subtracted
                px = tl.load(dual_x + x_t, mask=x_mask, other=float("-inf"))
                px = -tl.exp2(px - tl.where(valid_i, fx, 0.0)[:, None])
                # [BLOCK_X, BLOCK_T]
                wx = px * tl.load(weight_x + x_t, mask=x_mask, other=0.0)
            for first in range(0, num_y, BLOCK_Y):
                j = first + tl.arange(0, BLOCK_Y)
                y_tile, S, dS, fy, valid_j = through_values_of(
                    x_tile, vx_tile, y, value_y, delta, delta_x, 1.0, dual_y, padding, b, j,
                    num_y, num_iters, y_n, vy_n,
                    D, V_WIDTH, BLOCK_D, BLOCK_V, OPERAND, V_OPERAND, PRECISION,
                    X_IS_QUERY, HAS_PADDING,
                )  # fmt: skip
                if FEW == 1:
                    # [BLOCK_Y]
                    py = relative(dual_y + j, fy, valid_j)
                    wy = py * tl.load(weight_y + j, mask=valid_j, other=0.0)
                    dS -= px[:, None] * wy[None, :] + wx[:, None] * py[None, :]
                else:
                    y_t = t[:, None] * num_y + j[None, :]
                    y_mask = (t < num_iters)[:, None] & valid_j[None, :]
                    # [BLOCK_T, BLOCK_Y]
                    py = tl.load(dual_y + y_t, mask=y_mask, other=float("-inf"))
                    py = tl.exp2(py - tl.where(valid_j, fy, 0.0)[None, :])
                    # [BLOCK_T, BLOCK_Y]
                    wy = py * tl.load(weight_y + y_t, mask=y_mask, other=0.0)
                    dS = tl.dot(px, wy, dS, input_precision=RANK_PRECISION)
                    dS = tl.dot(wx, py, dS, input_precision=RANK_PRECISION)
                dS *= plan_tile(S, to_log2, fx, fy, X_IS_QUERY)
                grad += product(dS, y_tile, OPERAND, PRECISION)
        else:
            for first in range(0, num_y, BLOCK_Y):
                j = first + tl.arange(0, BLOCK_Y)
                y_tile, S, dS, fy, valid_j = through_values_of(
                    x_tile, vx_tile, y, value_y, delta, delta_x, 1.0, dual_y, padding, b, j,
                    num_y, num_iters, y_n, vy_n,
                    D, V_WIDTH, BLOCK_D, BLOCK_V, OPERAND, V_OPERAND, PRECISION,
                    X_IS_QUERY, HAS_PADDING,
                )  # fmt: skip
                dS *= plan_tile(S, to_log2, fx, fy, X_IS_QUERY)
                for step in range(num_iters):
                    fx_t = tl.load(dual_x + step * num_x + i, mask=valid_i, other=float("-inf"))
                    fy_t = tl.load(dual_y + step * num_y + j, mask=valid_j, other=float("-inf"))
                    wx_t = tl.load(weight_x + step * num_x + i, mask=valid_i, other=0.0)
                    wy_t = tl.load(weight_y + step * num_y + j, mask=valid_j, other=0.0)
                    A = plan_tile(S, to_log2, fx_t, fy_t, X_IS_QUERY)
                    dS -= A * (wx_t[:, None] + wy_t[None, :])
                grad += product(dS, y_tile, OPERAND, PRECISION)
    store_tile(grad_x + b * gx_b + h * gx_h, i, i < num_x, gx_n, grad * slope, D, BLOCK_D)


def launch(p: Launch, grad_out: Tensor, duals: Duals, grads: tuple[Tensor, ...]) -> None:
    """Write the gradients of q, k, v and f^0."""
    through_all(p, grad_out, duals, grads, through_updates)


ThroughUpdates = Callable[[Launch, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A way to take the gradient through the updates: `through_updates` is one."""


def through_all(
    p: Launch,
    grad_out: Tensor,
    duals: Duals,
    grads: tuple[Tensor, ...],
    through_updates: ThroughUpdates,
) -> None:
    """Write the gradients of q, k, v and f^0."""
    grad_q, grad_k, grad_v, grad_start = grads
    rows, cols = duals
    # With g^0 = g^1 - log(n / m), A^0 has the form of every other A^t.
    cols = torch.cat([cols[:, :, :1] - p.log2_ratio, cols], dim=2)
    row, col = rows[:, :, -1], cols[:, :, -1]
    delta = exact_delta(p, grad_out, row, col)
    grad_col = through_values(p, grad_out, delta, row, col, grad_v)
    row_weights, col_weights = through_updates(p, rows, cols, grad_col, grad_start)
    query_side = Side(p.q, grad_out, rows, row_weights)
    key_side = Side(p.k, p.v, cols, col_weights)
    through_logits(p, query_side, key_side, delta, grad_q, grad_k)


def exact_delta(p: Launch, grad_out: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Return delta `[B, H, N]`, where dX = A (dA - delta)."""
    delta = torch.empty_like(row)
    x_block, y_block, warps = p.gradient_tile
    delta_kernel[(p.programs * triton.cdiv(p.n, x_block),)](
        p.q, p.k, p.v, grad_out, row, col, p.padding, delta,
        *strides(p.q, p.k, p.v, grad_out), *head_strides(row, col, delta),
        p.heads, p.n, p.m, p.to_log2,
        **p.values, BLOCK_N=x_block, BLOCK_M=y_block, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip
    return delta


def through_values(
    p: Launch,
    grad_out: Tensor,
    delta: Tensor,
    row: Tensor,
    col: Tensor,
    grad_v: Tensor,
    grad_k: Tensor | None = None,
) -> Tensor:
    """Write v's gradient, and return dg^T `[B, H, M]`.

    With `grad_k`, for a g^T that no updates made from q and k, write k's gradient too.
    """
    grad_col = torch.empty_like(col)
    x_block, y_block, warps = p.gradient_tile
    of_keys = grad_k is not None
    of_k = strides(grad_k) if grad_k is not None else (0, 0, 0)
    value_kernel[(p.programs * triton.cdiv(p.m, x_block),)](
        p.q, p.k, p.v, grad_out, delta, row, col, p.padding, grad_v, grad_col, grad_k,
        *strides(p.q, p.k, p.v, grad_out, grad_v), *of_k,
        *head_strides(delta, row, col, grad_col), p.heads, p.n, p.m, p.to_log2, p.slope,
        **p.values, BLOCK_N=y_block, BLOCK_M=x_block, OF_KEYS=of_keys, num_warps=warps,
        **EVERY_LAUNCH,
    )  # fmt: skip
    return grad_col


def through_updates(
    p: Launch, rows: Tensor, cols: Tensor, grad_col: Tensor, grad_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Write f^0's gradient, and return df^t `[B, H, T, N]` (0 at t = 0) and w^t `[B, H, T, M]`."""
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
    p: Launch,
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
    """Write -sum_y A_xy weight_y; with `earlier_x`, times exp(dual_x - earlier_x) m / n."""
    x_block, y_block, warps = p.tile
    num_x, num_y = x.shape[2], y.shape[2]
    adjoint_kernel[(p.programs * triton.cdiv(num_x, x_block),)](
        x, y, dual_x, dual_y, weight_y, earlier_x, p.padding, result,
        *strides(x, y), *head_strides(dual_x, dual_y, weight_y, earlier_x, result),
        p.heads, num_x, num_y, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_X=x_block, BLOCK_Y=y_block,
        X_IS_QUERY=x_is_query, RESCALE=earlier_x is not None, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


class Side(NamedTuple):
    """Queries or keys with their factor of dA = grad_out v', their duals and adjoint weights."""

    tokens: Tensor
    values: Tensor
    duals: Tensor
    weights: Tensor


def through_logits(
    p: Launch, queries: Side, keys: Side, delta: Tensor, grad_q: Tensor, grad_k: Tensor
) -> None:
    """Write the gradients of q and k. Weights may be overwritten."""
    in_halves = (
        2 <= p.num_iters <= RANK_UPDATES
        and rank_products(p) == ONE_PASS
        and p.n % RUN == 0
        and p.m % RUN == 0
    )
    factors, drift = None, None
    if in_halves:
        factors = packed_factors(p, *queries[2:], *keys[2:])
    elif p.num_iters <= RANK_UPDATES:
        drift = torch.maximum(largest_change(queries.duals), largest_change(keys.duals))
    else:
        drift = torch.full_like(delta[:, :, 0], torch.inf)
    logit_gradient(p, queries, keys, delta, drift, factors, grad_q, x_is_query=True)
    logit_gradient(p, keys, queries, delta, drift, factors, grad_k, x_is_query=False)


def logit_gradient(
    p: Launch,
    x: Side,
    y: Side,
    delta: Tensor,
    drift: Tensor | None,
    factors: Factors | None,
    grad_x: Tensor,
    *,
    x_is_query: bool,
) -> None:
    """Write the gradient of x's tokens; with `factors`, these are in the place of weights."""
    x_block, y_block, warps = p.gradient_tile
    num_x, num_y = x.tokens.shape[2], y.tokens.shape[2]
    halves = [None if factors is None else z.weights.view(torch.float16) for z in (x, y)]
    by_rank = p.num_iters <= RANK_UPDATES
    rank, more_rank = rank_blocks(2 * p.num_iters if by_rank else 1)
    logit_kernel[(p.programs * triton.cdiv(num_x, x_block),)](
        x.tokens, y.tokens, x.values, y.values, delta,
        x.duals, y.duals, x.weights, y.weights, *halves, drift, *(factors or NONE), p.padding,
        grad_x, *strides(x.tokens, y.tokens, x.values, y.values, grad_x),
        p.heads, num_x, num_y, p.num_iters, p.to_log2, p.slope,
        **p.values, BLOCK_T=block(p.num_iters if by_rank else 1), BLOCK_X=x_block, BLOCK_Y=y_block,
        RANK_PRECISION=rank_products(p), X_IS_QUERY=x_is_query, FEW=min(p.num_iters, 2),
        HALVES=factors is not None, RANK=rank, MORE_RANK=more_rank, GROUP_RANK=2 * GROUP,
        num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


def rank_blocks(rank: int) -> tuple[int, int]:
    """Return two powers of two, the second or 0, whose sum covers the rank with the least waste.

    The matrix units need at least 16; neither is larger than 32, so that tiles stay small.
    """
    if rank <= RANK_BLOCK:
        return block(rank), 0
    return RANK_BLOCK, block(rank - RANK_BLOCK)


def largest_change(duals: Tensor) -> Tensor:
    """Return the largest difference of any dual from the last, `[B, H]`, in units of log 2."""
    last = duals[:, :, -1]
    lowest, highest = torch.aminmax(duals, dim=2)
    return torch.maximum(highest - last, last - lowest).amax(dim=2)


def rank_products(p: Launch) -> str:
    """Return how the gradient's products of low rank, of float32 tiles, are computed."""
    return RANK_PRECISION.get(p.q.dtype, p.products)
