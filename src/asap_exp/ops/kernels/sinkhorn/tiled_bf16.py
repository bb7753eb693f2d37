"""Half steps and attention in passes over tiles for bfloat16 inputs without a gradient.

`tiled` needs two additions per entry; these kernels need one. The dual of the streamed side is one
more product on the matrix units, [1 1 1] times the dual's three bfloat16 parts, and one
multiply-add scales the logits and shifts the sums. No running maximum is kept: the shift is an
earlier dual, or the maximum of some tiles; if it was far off, the block starts again with a
running maximum.

Logits are rounded differently from `tiled`, by about 2^-22 of the largest. The gradient therefore
uses `tiled`, since all its passes must see the same logits. Any length. Letters: see
`kernels.tiles`.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.launch import Duals, Launch, head_strides, strides
from asap_exp.ops.kernels.sinkhorn import keys_in_registers, logits_in_registers
from asap_exp.ops.kernels.sinkhorn.tiled import (
    finite_shift,
    head_and_tokens,
    rescale,
)
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    IN_LOG2,
    LOG2_E,
    fma_bias,
    load_tile,
    product,
    store_tile,
    valid_tokens,
)

PARTS = 3
"""Number of bfloat16 values that represent one float32."""

ABSENT_DUAL = tl.constexpr(-1e30)
"""Dual of an absent token, in units of the products of q and k."""

PADDED_TO = 128
"""Multiple of tokens for which the parts of a dual are stored, so that tiles are whole."""

SMALLEST_SUM, LARGEST_SUM = tl.constexpr(2.0**-96), tl.constexpr(2.0**96)
"""Bounds within which a sum is accurate, whatever its shift."""


def refusal(call: Call) -> str | None:
    """Return why the bfloat16 kernels do not take the call, or None if they do."""
    if call.keeps_duals:
        return "keeps no duals"
    for dtype in (call.dtype, call.value_dtype):
        if dtype != torch.bfloat16:
            return f"takes bfloat16, got {dtype}".replace("torch.", "")
    if call.constant_logits:
        return "stores duals divided by scale / eps, which is 0"
    return None


def slower(call: Call) -> str | None:
    """Return why another route is faster, or None if none is."""
    if call.num_iters == 1:
        most = logits_in_registers.TOKENS
        if call.longest <= most:
            return f"is the fastest only beyond {most} tokens"
    elif call.m <= keys_in_registers.KEYS:
        return f"is the fastest only beyond {keys_in_registers.KEYS} keys"
    return None


@triton.jit
def store_parts(parts, dual, index, valid, padded, to_log2):
    """Store `dual` (in units of log 2) as the matrix units read it, `[PARTS, padded]`."""
    absent = tl.where(to_log2 < 0, -ABSENT_DUAL, ABSENT_DUAL)
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
    """Convert a dual from natural units (0 if there is none) to units of log 2 and to parts."""
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
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_PADDING: tl.constexpr, NO_TAIL: tl.constexpr,
):
    # fmt: on
    """Load the rows `j`; 0 where padded. With NO_TAIL, all rows exist."""
    if NO_TAIL and not HAS_PADDING:
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
    HAS_PADDING: tl.constexpr, NO_TAIL: tl.constexpr,
):
    # fmt: on
    """Return <x, y> + dual_y / to_log2 for the tile of y that starts at `first`."""
    j = first + tl.arange(0, BLOCK_Y)
    # [BLOCK_Y, BLOCK_D]
    y_tile = load_streamed(y, padding, b, j, num_y, y_n, D, BLOCK_D, HAS_PADDING, NO_TAIL)
    # [BLOCK_X, BLOCK_Y]
    S = product(x_tile, tl.trans(y_tile), OPERAND, PRECISION)
    part = tl.arange(0, 16)
    # [16, BLOCK_Y]
    dual = tl.load(
        parts_y + part[:, None] * padded_y + j[None, :], mask=(part < 3)[:, None], other=0.0
    )
    ones = tl.full([BLOCK_X, 16], 1.0, tl.bfloat16)
    return S + product(ones, dual, tl.bfloat16, PRECISION)


@triton.jit
def partial_sums(E, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr):
    """Return the row sums of a tile in four parts, each within a thread, `[BLOCK_X, 4]`."""
    return tl.sum(tl.sum(tl.reshape(E, [BLOCK_X, BLOCK_Y // 8, 4, 2]), 3), 1)


@triton.jit
def row_sums(E, OPERAND: tl.constexpr):
    """Return the row sums of E, rounded as for the product with v, in each of 16 columns.

    A row with a single significant entry therefore yields its value unchanged.
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
    HAS_PREVIOUS: tl.constexpr, HAS_PADDING: tl.constexpr, NO_TAIL: tl.constexpr,
):
    # fmt: on
    """Compute log2_ratio - LSE_y(S_xy + dual_y) and its parts; `previous` is an earlier result."""
    head, i = head_and_tokens(num_x, BLOCK_X)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
    # [BLOCK_X, BLOCK_D]
    x_tile = load_tile(x + b * x_b + h * x_h, i, valid_i, x_n, D, BLOCK_D)
    y += b * y_b + h * y_h
    parts_y += head * 3 * padded_y
    if HAS_PREVIOUS:
        shift = tl.load(previous + head * previous_stride + i, mask=valid_i, other=0.0)
        # [BLOCK_X, 4]
        totals = tl.zeros([BLOCK_X, 4], tl.float32)
    else:
        # [BLOCK_X, BLOCK_Y]
        S = logits(
            x_tile, y, parts_y, padding, b, 0, num_y, padded_y, y_n,
            D, BLOCK_X, BLOCK_Y, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, NO_TAIL,
        )  # fmt: skip
        shift = first_shift(S * to_log2)
        totals = partial_sums(tl.exp2(fma_bias(S, to_log2, shift[:, None])), BLOCK_X, BLOCK_Y)
    done = 0 if HAS_PREVIOUS else BLOCK_Y
    for first in range(done, num_y, BLOCK_Y):
        S = logits(
            x_tile, y, parts_y, padding, b, first, num_y, padded_y, y_n,
            D, BLOCK_X, BLOCK_Y, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, NO_TAIL,
        )  # fmt: skip
        totals += partial_sums(tl.exp2(fma_bias(S, to_log2, shift[:, None])), BLOCK_X, BLOCK_Y)
    total = tl.sum(totals, 1)
    if any_lost(total, valid_i):
        shift = tl.full([BLOCK_X], float("inf"), tl.float32)
        total = tl.zeros([BLOCK_X], tl.float32)
        for first in range(0, num_y, BLOCK_Y):
            S = logits(
                x_tile, y, parts_y, padding, b, first, num_y, padded_y, y_n,
                D, BLOCK_X, BLOCK_Y, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, NO_TAIL,
            )  # fmt: skip
            lower = lower_shift(shift, S * to_log2)
            total *= rescale(shift, lower)
            shift = lower
            total += tl.sum(tl.exp2(fma_bias(S, to_log2, finite_shift(shift)[:, None])), 1)
    dual = tl.where(valid_i, shift - tl.log2(total) + log2_ratio, 0.0)
    tl.store(result + head * result_stride + i, dual, mask=i < num_x)
    store_parts(parts_x + head * 3 * padded_x, dual, i, valid_i, padded_x, to_log2)


@triton.jit
def first_shift(X):
    """Return minus the largest entry of each row of the first tile; 0 if it has no token."""
    highest = tl.max(X, 1)
    return tl.where(highest < -1e20, 0.0, -highest)


@triton.jit
def lower_shift(shift, X):
    """Return minus the running maximum (+inf at the start) after a further tile of logits.

    A tile without a token leaves it as it is: duals of absent tokens are finite, and so large that
    their rounding errors have no exponential.
    """
    highest = tl.max(X, 1)
    return tl.minimum(shift, tl.where(highest < -1e20, float("inf"), -highest))


@triton.jit
def lost(total, valid):
    """Return 1 for each sum whose shift was so far off that it lost digits, otherwise 0."""
    good = (total > SMALLEST_SUM) & (total < LARGEST_SUM)
    return (valid & (good == 0)).to(tl.int32)


@triton.jit
def any_lost(total, valid):
    """Return whether any sum lost digits."""
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
    HAS_PREVIOUS: tl.constexpr, HAS_PADDING: tl.constexpr, NO_TAIL: tl.constexpr,
):
    # fmt: on
    """Compute softmax_j(S + col) v from the `parts` of col.

    `previous` is a dual of q, if any, which shifts the sums; without, some keys' maximum does.
    """
    head, i = head_and_tokens(n, BLOCK_N)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + b * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    parts += head * 3 * padded_m
    if not HAS_PREVIOUS:
        # The keys at the queries' own places: in self-attention they have the largest logits, or
        # nearly. A test of the sums in the loop below would keep products from overlapping.
        place = tl.minimum((tl.program_id(0) % tl.cdiv(n, BLOCK_N)) * BLOCK_N, padded_m - BLOCK_N)
        highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
        for first in range(place, tl.minimum(place + BLOCK_N, m), BLOCK_M):
            S = logits(
                q_tile, k, parts, padding, b, first, m, padded_m, k_n,
                D, BLOCK_N, BLOCK_M, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, NO_TAIL,
            )  # fmt: skip
            highest = tl.maximum(highest, tl.max(S * to_log2, 1))
        shift = tl.where(highest < -1e20, 0.0, -highest)
    else:
        shift = tl.load(previous + head * previous_stride + i, mask=valid_i, other=0.0)
    # [BLOCK_N, 16]
    totals = tl.zeros([BLOCK_N, 16], tl.float32)
    # [BLOCK_N, BLOCK_V]
    values = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    for first in range(0, m, BLOCK_M):
        # [BLOCK_N, BLOCK_M]
        S = logits(
            q_tile, k, parts, padding, b, first, m, padded_m, k_n,
            D, BLOCK_N, BLOCK_M, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, NO_TAIL,
        )  # fmt: skip
        # [BLOCK_N, BLOCK_M]
        E = tl.exp2(fma_bias(S, to_log2, shift[:, None]))
        totals += row_sums(E, V_OPERAND)
        j = first + tl.arange(0, BLOCK_M)
        # [BLOCK_M, BLOCK_V]
        v_tile = load_streamed(v, padding, b, j, m, v_n, V_WIDTH, BLOCK_V, HAS_PADDING, NO_TAIL)
        values += product(E, v_tile, V_OPERAND, PRECISION)
    total = tl.max(totals, 1)
    if any_lost(total, valid_i):
        shift = tl.full([BLOCK_N], float("inf"), tl.float32)
        totals = tl.zeros([BLOCK_N, 16], tl.float32)
        values = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        for first in range(0, m, BLOCK_M):
            S = logits(
                q_tile, k, parts, padding, b, first, m, padded_m, k_n,
                D, BLOCK_N, BLOCK_M, BLOCK_D, OPERAND, PRECISION, HAS_PADDING, NO_TAIL,
            )  # fmt: skip
            lower = lower_shift(shift, S * to_log2)
            totals *= rescale(shift, lower)[:, None]
            values *= rescale(shift, lower)[:, None]
            shift = lower
            E = tl.exp2(fma_bias(S, to_log2, finite_shift(shift)[:, None]))
            totals += row_sums(E, V_OPERAND)
            j = first + tl.arange(0, BLOCK_M)
            v_tile = load_streamed(v, padding, b, j, m, v_n, V_WIDTH, BLOCK_V, HAS_PADDING, NO_TAIL)
            values += product(E, v_tile, V_OPERAND, PRECISION)
        total = tl.max(totals, 1)
    values = tl.where(valid_i[:, None], values / total[:, None], 0.0)
    store_tile(out + b * out_b + h * out_h, i, i < n, out_n, values, V_WIDTH, BLOCK_V)


class Side:
    """Queries or keys with their dual, in units of log 2 and in parts for the matrix units."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        batch, heads, self.count, _ = tokens.shape
        self.padded = triton.cdiv(self.count, PADDED_TO) * PADDED_TO
        self.duals = tokens.new_empty(2, batch, heads, self.count, dtype=torch.float32)
        self.parts = tokens.new_empty(batch, heads, PARTS, self.padded, dtype=torch.bfloat16)
        self.steps = 0
        """Number of times that `half_step` has set the dual."""

    @property
    def dual(self) -> Tensor:
        return self.duals[self.steps % 2]


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None = None) -> None:
    """Write `out`; `start` is f^0, or None for zeros. No duals are kept."""
    queries, keys = Side(p.q), Side(p.k)
    set_dual(p, queries, start)
    half_step(p, keys, queries, p.log2_ratio)
    for _ in range(1, p.num_iters):
        half_step(p, queries, keys, 0.0)
        half_step(p, keys, queries, p.log2_ratio)
    attention(p, queries.dual, keys, out)


def set_dual(p: Launch, side: Side, dual: Tensor | None) -> None:
    """Set the side's dual to `dual`, in natural units; None for zeros."""
    parts_kernel[(p.programs * triton.cdiv(side.padded, PADDED_TO),)](
        dual, p.padding, side.dual, side.parts,
        p.heads, side.count, side.padded, p.to_log2,
        BLOCK=PADDED_TO, HAS_DUAL=dual is not None, HAS_PADDING=p.padding is not None,
        num_warps=1, **EVERY_LAUNCH,
    )  # fmt: skip


def half_step(p: Launch, x: Side, y: Side, log2_ratio: float) -> None:
    """Set x's dual to log2_ratio - LSE_y(S + y's dual), with sums shifted by x's earlier dual."""
    x_block, y_block, warps = p.tile
    previous = x.dual if x.steps else None
    x.steps += 1
    half_step_kernel[(p.programs * triton.cdiv(x.count, x_block),)](
        x.tokens, y.tokens, y.parts, previous, p.padding, x.dual, x.parts,
        *strides(x.tokens, y.tokens), *head_strides(previous, x.dual),
        p.heads, x.count, y.count, x.padded, y.padded, p.to_log2, log2_ratio,
        **p.logits, BLOCK_X=x_block, BLOCK_Y=y_block,
        HAS_PREVIOUS=previous is not None, NO_TAIL=y.count % y_block == 0, num_warps=warps,
        **EVERY_LAUNCH,
    )  # fmt: skip


def attention(p: Launch, row: Tensor | None, keys: Side, out: Tensor) -> None:
    """Write softmax_j(S + g) v; `row` approximates minus the log of the sums, None for zeros."""
    n_block, m_block, warps = p.tile
    attention_kernel[(p.programs * triton.cdiv(p.n, n_block),)](
        p.q, p.k, p.v, keys.parts, row, p.padding, out,
        *strides(p.q, p.k, p.v, out), *head_strides(row),
        p.heads, p.n, p.m, keys.padded, p.to_log2,
        **p.values, BLOCK_N=n_block, BLOCK_M=m_block,
        HAS_PREVIOUS=row is not None, NO_TAIL=p.m % m_block == 0, num_warps=warps,
        **EVERY_LAUNCH,
    )  # fmt: skip


def biased_pass(p: Launch, predict: Callable[[Tensor, Tensor], None], out: Tensor) -> None:
    """Write softmax_j(S + col) v; `predict` writes col, in units of log 2 and in parts."""
    keys = Side(p.k)
    predict(keys.dual, keys.parts)
    attention(p, None, keys, out)


def predicted_closure(p: Launch, predict: Callable[[Tensor, Tensor], None], out: Tensor) -> None:
    """Write the closure of f; `predict` writes f, in units of log 2 and in parts."""
    queries, keys = Side(p.q), Side(p.k)
    predict(queries.dual, queries.parts)
    half_step(p, keys, queries, p.log2_ratio)
    attention(p, queries.dual, keys, out)


def attention_pass(p: Launch, col: Tensor | None, row: Tensor | None, out: Tensor) -> None:
    """Write softmax_j(S + col) v; duals are in natural units, None for zeros.

    `row` `[B, H, N]` approximates minus the logs of the sums and shifts them.
    """
    queries, keys = Side(p.q), Side(p.k)
    set_dual(p, queries, row)
    set_dual(p, keys, col)
    attention(p, queries.dual, keys, out)


def column_pass(p: Launch, row: Tensor) -> Tensor:
    """Return g `[B, H, M]` from f `[B, H, N]`, both in natural units."""
    queries, keys = Side(p.q), Side(p.k)
    set_dual(p, queries, row)
    half_step(p, keys, queries, p.log2_ratio)
    return keys.dual / LOG2_E
