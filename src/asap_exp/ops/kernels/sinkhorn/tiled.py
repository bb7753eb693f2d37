"""Half steps and attention in passes over tiles: any length, nothing of size n x m stored.

Each kernel anchors a block of one side's tokens (x) and streams the other's (y): with queries as x
it is a row pass, with keys as x a column pass. `dual_x` and `dual_y` are in units of log 2. Sums
are shifted by a running maximum, as in flash attention, or by an earlier dual. This route takes
every call. Letters: see `kernels.tiles`.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Duals, Launch, head_strides, strides
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    LOG2_E,
    fma_bias,
    load_tile,
    log2_plan,
    product,
    product_in_chunks,
    store_tile,
    valid_tokens,
)


@triton.jit
def head_and_tokens(count, BLOCK: tl.constexpr):
    """Return this program's head and its BLOCK tokens; the programs of a head are consecutive."""
    blocks = tl.cdiv(count, BLOCK)
    program = tl.program_id(0)
    first = (program % blocks) * BLOCK
    return (program // blocks).to(tl.int64), first + tl.arange(0, BLOCK)


@triton.jit
def plan_tile(S, to_log2, dual_x, dual_y, X_IS_QUERY: tl.constexpr):
    """Return the plan A of a tile whose rows are x."""
    if X_IS_QUERY:
        return tl.exp2(log2_plan(S, to_log2, dual_y[None, :], dual_x[:, None]))
    return tl.exp2(log2_plan(S, to_log2, dual_x[:, None], dual_y[None, :]))


@triton.jit
def running_shift(shift, logits):
    """Return minus the running maximum (+inf at the start) after a further tile of logits."""
    highest = tl.max(logits, axis=1)
    return tl.minimum(shift, tl.where(highest == float("-inf"), float("inf"), -highest))


@triton.jit
def rescale(shift, lower):
    """Return the factor that updates sums of exp(logits + shift) when `shift` becomes `lower`."""
    return tl.where(shift == float("inf"), 0.0, tl.exp2(finite_shift(lower) - finite_shift(shift)))


@triton.jit
def finite_shift(shift):
    """Return the shift, or 0 where no maximum is known yet."""
    return tl.where(shift == float("inf"), 0.0, shift)


# fmt: off
@triton.jit
def half_step_kernel(
    x, y, dual_y, previous, padding, result,
    x_b, x_h, x_n, y_b, y_h, y_n,
    dual_y_stride, previous_stride, result_stride,
    heads, num_x, num_y, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    X_IS_QUERY: tl.constexpr, HAS_DUAL: tl.constexpr, HAS_PREVIOUS: tl.constexpr,
    HAS_PADDING: tl.constexpr, CHUNK: tl.constexpr,
):
    # fmt: on
    """Compute result_x = log2_ratio - LSE_y(S_xy + dual_y).

    With `previous`, there is no running maximum: it must be a dual for which
    sum_y exp(S + dual_y + previous_x) is of moderate size. With CHUNK, the products read as many
    channels at a time.
    """
    head, i = head_and_tokens(num_x, BLOCK_X)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
    x += b * x_b + h * x_h
    y += b * y_b + h * y_h
    if not CHUNK:
        # [BLOCK_X, BLOCK_D]
        x_tile = load_tile(x, i, valid_i, x_n, D, BLOCK_D)
    if HAS_PREVIOUS:
        shift = tl.load(previous + head * previous_stride + i, mask=valid_i, other=0.0)
    else:
        shift = tl.full([BLOCK_X], float("inf"), tl.float32)  # minus the running maximum
    # [BLOCK_X]
    total = tl.zeros([BLOCK_X], tl.float32)
    for first in range(0, num_y, BLOCK_Y):
        j = first + tl.arange(0, BLOCK_Y)
        valid_j = valid_tokens(padding, b, j, num_y, HAS_PADDING)
        # [BLOCK_X, BLOCK_Y]
        if CHUNK:
            S = product_in_chunks(
                x, i, valid_i, x_n, y, j, valid_j, y_n, D, BLOCK_D, CHUNK, PRECISION
            )
        else:
            # [BLOCK_Y, BLOCK_D]
            y_tile = load_tile(y, j, valid_j, y_n, D, BLOCK_D)
            S = product(x_tile, tl.trans(y_tile), OPERAND, PRECISION)
        if HAS_DUAL:
            bias = tl.load(dual_y + head * dual_y_stride + j, mask=valid_j, other=float("-inf"))
        else:
            bias = tl.where(valid_j, 0.0, float("-inf"))
        if not HAS_PREVIOUS:
            lower = running_shift(shift, fma_bias(S, to_log2, bias[None, :]))
            total *= rescale(shift, lower)
            shift = lower
        total += tl.sum(plan_tile(S, to_log2, finite_shift(shift), bias, X_IS_QUERY), axis=1)
    dual = tl.where(valid_i, shift - tl.log2(total) + log2_ratio, 0.0)
    tl.store(result + head * result_stride + i, dual, mask=i < num_x)


# fmt: off
@triton.jit
def attention_kernel(
    q, k, v, col, previous, padding, out, row,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    col_stride, previous_stride, row_stride,
    heads, n, m, to_log2,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr, HAS_PADDING: tl.constexpr, SAVE: tl.constexpr,
):
    # fmt: on
    """Compute softmax_j(S + col) v: flash attention with a bias per key; `row` gets its dual."""
    head, i = head_and_tokens(n, BLOCK_N)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + b * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    if HAS_PREVIOUS:
        shift = tl.load(previous + head * previous_stride + i, mask=valid_i, other=0.0)
    else:
        shift = tl.full([BLOCK_N], float("inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    rounded = tl.zeros([BLOCK_N], tl.float32)  # the sums of E, rounded as for the product with v
    # [BLOCK_N, BLOCK_V]
    values = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    for first in range(0, m, BLOCK_M):
        j = first + tl.arange(0, BLOCK_M)
        valid_j = valid_tokens(padding, b, j, m, HAS_PADDING)
        # [BLOCK_M, BLOCK_D]
        k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
        # [BLOCK_N, BLOCK_M]
        S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
        g = tl.load(col + head * col_stride + j, mask=valid_j, other=float("-inf"))
        if not HAS_PREVIOUS:
            lower = running_shift(shift, fma_bias(S, to_log2, g[None, :]))
            total *= rescale(shift, lower)
            rounded *= rescale(shift, lower)
            values *= rescale(shift, lower)[:, None]
            shift = lower
        # [BLOCK_N, BLOCK_M]
        E = plan_tile(S, to_log2, finite_shift(shift), g, True)
        total += tl.sum(E, axis=1)
        rounded += tl.sum(E.to(V_OPERAND).to(tl.float32), axis=1)
        # [BLOCK_M, BLOCK_V]
        v_tile = load_tile(v, j, valid_j, v_n, V_WIDTH, BLOCK_V)
        values += product(E, v_tile, V_OPERAND, PRECISION)
    values = tl.where(valid_i[:, None], values / rounded[:, None], 0.0)
    store_tile(out + b * out_b + h * out_h, i, i < n, out_n, values, V_WIDTH, BLOCK_V)
    if SAVE:
        dual = tl.where(valid_i, shift - tl.log2(total), 0.0)
        tl.store(row + head * row_stride + i, dual, mask=i < n)


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None) -> None:
    """Write `out`, and all duals if they are kept; `start` is f^0, or None for zeros."""
    save = duals is not None
    rows, cols = first_duals(p, start, duals)
    f: Tensor | None = None
    g = cols[:, :, 0]
    for t in range(1, p.num_iters):
        f_next, g_next = rows[:, :, t % rows.shape[2]], cols[:, :, t % cols.shape[2]]
        row_step(p, g, f, f_next)
        column_step(p, f_next, g, g_next)
        f, g = f_next, g_next
    last_step(p, g, f, out, rows, save)


def first_duals(p: Launch, start: Tensor | None, duals: Duals | None) -> Duals:
    """Return duals with f^0 and g^1 set; if no duals are kept, with space for two updates."""
    if duals is None:
        rows = p.q.new_empty(*p.q.shape[:2], 2, p.n, dtype=torch.float32)
        cols = p.q.new_empty(*p.q.shape[:2], 2, p.m, dtype=torch.float32)
    else:
        rows, cols = duals
        if start is None:
            rows[:, :, 0] = 0.0
    first = None if start is None else torch.mul(start, LOG2_E, out=rows[:, :, 0])
    column_step(p, first, None, cols[:, :, 0])
    return Duals(rows, cols)


def last_step(
    p: Launch, col: Tensor, row: Tensor | None, out: Tensor, rows: Tensor, save: bool
) -> None:
    """Write `out` from g^T, or only f^T if there are no values; `row` is an earlier f."""
    last = rows[:, :, p.num_iters % rows.shape[2]]
    if p.v.shape[3]:
        attention(p, col, row, out, last, save)
    else:
        row_step(p, col, row, last)


def column_step(
    p: Launch, row: Tensor | None, previous: Tensor | None, result: Tensor
) -> None:
    """Write g = -LSE_i(S + row) + log(n / m); `previous`, an earlier g, replaces maxima."""
    sides = p.k, p.q, row, previous, result
    _half_step(p, *sides, p.log2_ratio, x_is_query=False)


def row_step(p: Launch, col: Tensor, previous: Tensor | None, result: Tensor) -> None:
    """Write f = -LSE_j(S + col); `previous`, an earlier f, replaces running maxima."""
    sides = p.q, p.k, col, previous, result
    _half_step(p, *sides, 0.0, x_is_query=True)


def _half_step(
    p: Launch,
    x: Tensor,
    y: Tensor,
    dual_y: Tensor | None,
    previous: Tensor | None,
    result: Tensor,
    log2_ratio: float,
    *,
    x_is_query: bool,
) -> None:
    x_block, y_block, warps, chunk = p.half_step_tile
    num_x, num_y = x.shape[2], y.shape[2]
    half_step_kernel[(p.programs * triton.cdiv(num_x, x_block),)](
        x, y, dual_y, previous, p.padding, result,
        *strides(x, y), *head_strides(dual_y, previous, result),
        p.heads, num_x, num_y, p.to_log2, log2_ratio,
        **p.logits, BLOCK_X=x_block, BLOCK_Y=y_block,
        X_IS_QUERY=x_is_query, HAS_DUAL=dual_y is not None, HAS_PREVIOUS=previous is not None,
        CHUNK=chunk, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


def attention(
    p: Launch, col: Tensor, row: Tensor | None, out: Tensor, last: Tensor, save: bool
) -> None:
    """Write softmax_j(S + col) v, and with `save` its dual into `last`; `row` is an earlier f."""
    n_block, m_block, warps = p.attention_tile
    attention_kernel[(p.programs * triton.cdiv(p.n, n_block),)](
        p.q, p.k, p.v, col, row, p.padding, out, last,
        *strides(p.q, p.k, p.v, out), *head_strides(col, row, last),
        p.heads, p.n, p.m, p.to_log2,
        **p.values, BLOCK_N=n_block, BLOCK_M=m_block,
        HAS_PREVIOUS=row is not None, SAVE=save, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


def biased_pass(
    p: Launch, predict: Callable[[Tensor, Tensor | None], None], out: Tensor
) -> None:
    """Write softmax_j(S + col) v; `predict` writes col into its first argument."""
    col = p.k.new_empty(p.k.shape[:3], dtype=torch.float32)
    predict(col, None)
    attention(p, col, None, out, col, save=False)


def attention_pass(p: Launch, col: Tensor | None, row: Tensor | None, out: Tensor) -> None:
    """Write softmax_j(S + col) v; `col` `[B, H, M]` is in natural units, None for zeros."""
    zeros = p.q.new_zeros(*p.k.shape[:3], dtype=torch.float32)
    col = zeros if col is None else col * LOG2_E
    attention(p, col, None, out, col, save=False)


def column_pass(p: Launch, row: Tensor) -> Tensor:
    """Return g `[B, H, M]` from f `[B, H, N]`, both in natural units."""
    g = p.k.new_empty(p.k.shape[:3], dtype=torch.float32)
    column_step(p, row * LOG2_E, None, g)
    return g / LOG2_E
