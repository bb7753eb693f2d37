"""Half steps and attention in passes over tiles for bfloat16 inputs without a gradient.

What `streaming` does with two additions an entry is done here with one: the dual of the streamed
side is a further product of the matrix units, [1 1 1] times the dual's three bfloat16 parts, and
what its sum is shifted by comes with the factor of the logits, in one multiply-add. No running
maximum is kept. The shift is an earlier dual, or else the first tile's maximum; where that was far
off, the block starts again with a running maximum.

Logits are rounded otherwise than in `streaming`, by about 2^-22 of the largest: the gradient, which
needs every pass to see the same logits, takes that one.
"""

import triton
import triton.language as tl

from asap_exp.ops.kernels.sinkhorn.tiled import decay, finite, lowered, place
from asap_exp.ops.kernels.tiles import (
    IN_LOG2,
    biased,
    load_tile,
    product,
    store_tile,
    valid_tokens,
)

PARTS = 3
"""bfloat16 numbers that hold a float32."""

ABSENT = tl.constexpr(-1e30)
"""The dual of a token that is not there, in units of the products of q and k."""

SMALLEST, LARGEST = tl.constexpr(2.0**-96), tl.constexpr(2.0**96)
"""Within them a sum is right, however its shift was chosen."""


@triton.jit
def store_parts(parts, dual, index, valid, padded, to_log2):
    """Stores `dual` (units of log 2) as the matrix units take it, `[PARTS, padded]`."""
    absent = tl.where(to_log2 < 0, -ABSENT, ABSENT)
    x = tl.where(valid, dual / to_log2, absent)
    for part in tl.static_range(3):
        rounded = x.to(tl.bfloat16)
        tl.store(parts + part * padded + index, rounded, mask=index < padded)
        x = tl.where(valid, x - rounded.to(tl.float32), 0.0)


# fmt: off
@triton.jit
def parts_kernel(
    natural, padding, dual, parts, heads, count, padded, to_log2,
    BLOCK: tl.constexpr, HAS_DUAL: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """A dual from natural units, 0 without one, to units of log 2 and to parts."""
    blocks = padded // BLOCK
    head = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    valid = valid_tokens(padding, head // heads, i, count, HAS_PADDING)
    f = tl.zeros([BLOCK], tl.float32)
    if HAS_DUAL:
        f += tl.load(natural + head * count + i, mask=valid, other=0.0) * IN_LOG2
    tl.store(dual + head * count + i, f, mask=i < count)
    store_parts(parts + head * 3 * padded, f, i, valid, padded, to_log2)


# fmt: off
@triton.jit
def load_streamed(
    y, padding, b, j, num_y, y_n,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_PADDING: tl.constexpr, EVEN: tl.constexpr,
):
    # fmt: on
    """The rows `j`, which all exist where EVEN; 0 where padded."""
    if EVEN and not HAS_PADDING:
        valid = tl.full(j.shape, True, tl.int1)
    else:
        valid = valid_tokens(padding, b, j, num_y, HAS_PADDING)
    return load_tile(y, j, valid, y_n, WIDTH, BLOCK)


# fmt: off
@triton.jit
def logits(
    x_tile, y, parts_y, padding, b, first, num_y, padded_y, y_n,
    D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, EVEN: tl.constexpr,
):
    # fmt: on
    """<x, y> + dual_y / to_log2 for a tile of y from `first` on."""
    j = first + tl.arange(0, BLOCK_Y)
    y_tile = load_streamed(y, padding, b, j, num_y, y_n, D, BLOCK_D, HAS_PADDING, EVEN)
    S = product(x_tile, tl.trans(y_tile), OPERAND, PRECISION)
    part = tl.arange(0, 16)
    dual = tl.load(
        parts_y + part[:, None] * padded_y + j[None, :], mask=(part < 3)[:, None], other=0.0
    )
    ones = tl.full([BLOCK_X, 16], 1.0, tl.bfloat16)
    return S + product(ones, dual, tl.bfloat16, PRECISION)


@triton.jit
def partial_sums(E, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr):
    """The row sums of a tile in four parts, each of what one thread holds, `[BLOCK_X, 4]`."""
    return tl.sum(tl.sum(tl.reshape(E, [BLOCK_X, BLOCK_Y // 8, 4, 2]), 3), 1)


@triton.jit
def row_sums(E, OPERAND: tl.constexpr):
    """Sums of E as it is rounded where it meets the values, in each of 16 columns.

    So a row with one entry that counts gives that value unchanged.
    """
    return product(E, tl.full([E.shape[1], 16], 1.0, OPERAND), OPERAND, "ieee")


# fmt: off
@triton.jit
def half_step_kernel(
    x, y, parts_y, previous, padding, result, parts_x,
    x_b, x_h, x_n, y_b, y_h, y_n, previous_stride, result_stride,
    heads, num_x, num_y, padded_x, padded_y, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr, HAS_PADDING: tl.constexpr, EVEN: tl.constexpr,
):
    # fmt: on
    """result_x = log2_ratio - LSE_y(S_xy + dual_y), and its parts; `previous` is an earlier one."""
    head, i = place(num_x, BLOCK_X)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
    x_tile = load_tile(x + b * x_b + h * x_h, i, valid_i, x_n, D, BLOCK_D)
    y += b * y_b + h * y_h
    parts_y += head * 3 * padded_y
    if HAS_PREVIOUS:
        shift = tl.load(previous + head * previous_stride + i, mask=valid_i, other=0.0)
        totals = tl.zeros([BLOCK_X, 4], tl.float32)
    else:
        S = logits(
            x_tile, y, parts_y, padding, b, 0, num_y, padded_y, y_n,
            D, BLOCK_X, BLOCK_Y, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, EVEN,
        )  # fmt: skip
        shift = first_shift(S * to_log2)
        totals = partial_sums(tl.exp2(biased(S, to_log2, shift[:, None])), BLOCK_X, BLOCK_Y)
    done = 0 if HAS_PREVIOUS else BLOCK_Y
    for first in range(done, num_y, BLOCK_Y):
        S = logits(
            x_tile, y, parts_y, padding, b, first, num_y, padded_y, y_n,
            D, BLOCK_X, BLOCK_Y, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, EVEN,
        )  # fmt: skip
        totals += partial_sums(tl.exp2(biased(S, to_log2, shift[:, None])), BLOCK_X, BLOCK_Y)
    total = tl.sum(totals, 1)
    if far_off(total, valid_i):
        shift = tl.full([BLOCK_X], float("inf"), tl.float32)
        total = tl.zeros([BLOCK_X], tl.float32)
        for first in range(0, num_y, BLOCK_Y):
            S = logits(
                x_tile, y, parts_y, padding, b, first, num_y, padded_y, y_n,
                D, BLOCK_X, BLOCK_Y, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, EVEN,
            )  # fmt: skip
            lower = lowered(shift, S * to_log2)
            total *= decay(shift, lower)
            shift = lower
            total += tl.sum(tl.exp2(biased(S, to_log2, finite(shift)[:, None])), 1)
    dual = tl.where(valid_i, shift - tl.log2(total) + log2_ratio, 0.0)
    tl.store(result + head * result_stride + i, dual, mask=i < num_x)
    store_parts(parts_x + head * 3 * padded_x, dual, i, valid_i, padded_x, to_log2)


@triton.jit
def first_shift(X):
    """Minus the largest of each row of the first tile, 0 where that has no token."""
    highest = tl.max(X, 1)
    return tl.where(highest < -1e20, 0.0, -highest)


@triton.jit
def lost(total, valid):
    """Which sums were shifted so badly that they lost what counts: 1, else 0."""
    good = (total > SMALLEST) & (total < LARGEST)
    return (valid & (good == 0)).to(tl.int32)


@triton.jit
def far_off(total, valid):
    """Whether some sum is lost."""
    return tl.max(lost(total, valid)) > 0


# fmt: off
@triton.jit
def attention_kernel(
    q, k, v, parts, previous, padding, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n, previous_stride,
    heads, n, m, padded_m, to_log2,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, EVEN: tl.constexpr,
):
    # fmt: on
    """out = softmax_j(S + col) v, where `parts` are those of col; `previous` is a dual of q."""
    head, i = place(n, BLOCK_N)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    q_tile = load_tile(q + b * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    parts += head * 3 * padded_m
    shift = tl.load(previous + head * previous_stride + i, mask=valid_i, other=0.0)
    totals = tl.zeros([BLOCK_N, 16], tl.float32)
    values = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    for first in range(0, m, BLOCK_M):
        S = logits(
            q_tile, k, parts, padding, b, first, m, padded_m, k_n,
            D, BLOCK_N, BLOCK_M, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, EVEN,
        )  # fmt: skip
        E = tl.exp2(biased(S, to_log2, shift[:, None]))
        totals += row_sums(E, V_OPERAND)
        j = first + tl.arange(0, BLOCK_M)
        v_tile = load_streamed(v, padding, b, j, m, v_n, V_WIDTH, BLOCK_V, HAS_PADDING, EVEN)
        values += product(E, v_tile, V_OPERAND, PRECISION)
    total = tl.max(totals, 1)
    if far_off(total, valid_i):
        shift = tl.full([BLOCK_N], float("inf"), tl.float32)
        totals = tl.zeros([BLOCK_N, 16], tl.float32)
        values = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        for first in range(0, m, BLOCK_M):
            S = logits(
                q_tile, k, parts, padding, b, first, m, padded_m, k_n,
                D, BLOCK_N, BLOCK_M, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, EVEN,
            )  # fmt: skip
            lower = lowered(shift, S * to_log2)
            totals *= decay(shift, lower)[:, None]
            values *= decay(shift, lower)[:, None]
            shift = lower
            E = tl.exp2(biased(S, to_log2, finite(shift)[:, None]))
            totals += row_sums(E, V_OPERAND)
            j = first + tl.arange(0, BLOCK_M)
            v_tile = load_streamed(v, padding, b, j, m, v_n, V_WIDTH, BLOCK_V, HAS_PADDING, EVEN)
            values += product(E, v_tile, V_OPERAND, PRECISION)
        total = tl.max(totals, 1)
    values = tl.where(valid_i[:, None], values / total[:, None], 0.0)
    store_tile(out + b * out_b + h * out_h, i, i < n, out_n, values, V_WIDTH, BLOCK_V)
