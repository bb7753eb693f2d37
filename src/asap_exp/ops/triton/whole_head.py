"""Sinkhorn attention of a head in one program, its keys on chip: for bfloat16 inputs, no gradient.

A block of queries meets every key at once, so that its row sums are complete before the column sums
need them: an update costs one exponential an entry, where two passes would cost two. The logits are
computed anew in every update, with the dual of the keys added by the matrix units as in `folded`.
Column sums are a product with E in 16 bits: an update's entries are at most 1 (n / m), and the sums
lie between 1 / m and n, because the step before normalised the other side.
"""

import triton
import triton.language as tl

from asap_exp.ops.triton.folded import far_off, partial_sums, row_sums, store_parts
from asap_exp.ops.triton.tiles import (
    IN_LOG2,
    biased,
    load_tile,
    product,
    store_tile,
    valid_tokens,
)

RESIDUE = tl.constexpr(2048.0)


@triton.jit
def dual_tile(parts, BLOCK_M: tl.constexpr):
    """The parts of the keys' dual as a factor, `[16, BLOCK_M]`."""
    part = tl.arange(0, 16)[:, None]
    place = parts + part * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    return tl.load(place, mask=part < 3, other=0.0)


@triton.jit
def weighted_columns(E, weight):
    """sum_i weight_i E_ij in two rows of `[16, keys]`: of the rounded weights, and of the rest."""
    part = tl.arange(0, 16)[:, None]
    high = weight.to(tl.float16)
    low = ((weight - high.to(tl.float32)) * RESIDUE).to(tl.float16)
    parts = tl.where(part == 0, high[None, :], tl.where(part == 1, low[None, :], 0.0))
    return product(parts, E, tl.float16, "ieee")


@triton.jit
def column_sums(columns, sums, BLOCK_M: tl.constexpr):
    """The two rows of `weighted_columns` together, `[BLOCK_M]`, by way of `sums`.

    Left in the layout of the product, every thread would go on with an eighth of the keys.
    """
    part = tl.arange(0, 16)[:, None]
    share = tl.where(part == 0, 1.0, tl.where(part == 1, 1.0 / RESIDUE, 0.0))
    tl.debug_barrier()
    tl.store(sums + tl.arange(0, BLOCK_M), tl.sum(columns * share, 0))
    tl.debug_barrier()
    return tl.load(sums + tl.arange(0, BLOCK_M))


# fmt: off
@triton.jit
def block_logits(
    q, k_tile, dual, i, valid_i, q_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """<q_i, k_j> + dual_j / to_log2 of a block of queries, `[len(i), keys]`."""
    q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
    ones = tl.full([i.shape[0], 16], 1.0, tl.bfloat16)
    return S + product(ones, dual, tl.bfloat16, PRECISION)


@triton.jit
def start_dual(start, index, valid, HAS_START: tl.constexpr):
    """f^0 in units of log 2, -inf where not valid."""
    if HAS_START:
        return tl.load(start + index, mask=valid, other=float("-inf")) * IN_LOG2
    return tl.where(valid, 0.0, float("-inf"))


# fmt: off
@triton.jit
def column_shift(
    q, k_tile, start, sums, padding, sample, blocks, q_n, n, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Minus the largest S + f^0 of each column over the first `blocks` blocks of queries."""
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for number in range(blocks):
        i = number * BLOCK_N + tl.arange(0, BLOCK_N)
        valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
        q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
        S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
        f = start_dual(start, i, valid_i, HAS_START)
        highest = tl.maximum(highest, tl.max(biased(S, to_log2, f[:, None]), 0))
    tl.debug_barrier()
    tl.store(sums + tl.arange(0, BLOCK_M), tl.where(highest == float("-inf"), 0.0, -highest))
    tl.debug_barrier()
    return tl.load(sums + tl.arange(0, BLOCK_M))


# fmt: off
@triton.jit
def first_columns(
    q, k_tile, start, sums, parts, padding, sample, blocks, q_n, n, j, valid_j, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """g and sum_i exp(S + f^0 + g), `[keys]`, with the shift g that `blocks` blocks suggest."""
    g = column_shift(
        q, k_tile, start, sums, padding, sample, blocks, q_n, n, to_log2,
        D, BLOCK_D, BLOCK_N, BLOCK_M, OPERAND, PRECISION, HAS_START, HAS_PADDING,
    )  # fmt: skip
    store_parts(parts, g, j, valid_j, BLOCK_M, to_log2)
    tl.debug_barrier()
    columns = tl.zeros([16, BLOCK_M], tl.float32)
    dual = dual_tile(parts, BLOCK_M)
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
        S = block_logits(q, k_tile, dual, i, valid_i, q_n, D, BLOCK_D, OPERAND, PRECISION)
        f = start_dual(start, i, valid_i, HAS_START)
        E = tl.exp2(biased(S, to_log2, f[:, None]))
        columns += weighted_columns(E, tl.where(valid_i, 1.0, 0.0))
    return g, column_sums(columns, sums, BLOCK_M)


# fmt: off
@triton.jit
def forward_kernel(
    q, k, v, start, padding, rows, sums, parts, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    heads, n, m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """One program a head; room for f^t in `rows` `[.., n]`, for keys in `sums` and `parts`."""
    head = tl.program_id(0).to(tl.int64)
    sample, h = head // heads, head % heads
    j = tl.arange(0, BLOCK_M)
    valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
    k_tile = load_tile(k + sample * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
    q += sample * q_b + h * q_h
    rows += head * n
    if HAS_START:
        start += head * n

    sums += head * BLOCK_M
    parts += head * 3 * BLOCK_M
    g, column_sum = first_columns(
        q, k_tile, start, sums, parts, padding, sample, 1, q_n, n, j, valid_j, to_log2,
        D, BLOCK_D, BLOCK_N, BLOCK_M, OPERAND, PRECISION, HAS_START, HAS_PADDING,
    )  # fmt: skip
    if far_off(column_sum, valid_j, tl.float16):
        blocks = tl.cdiv(n, BLOCK_N)
        g, column_sum = first_columns(
            q, k_tile, start, sums, parts, padding, sample, blocks, q_n, n, j, valid_j, to_log2,
            D, BLOCK_D, BLOCK_N, BLOCK_M, OPERAND, PRECISION, HAS_START, HAS_PADDING,
        )  # fmt: skip
    g += log2_ratio - tl.log2(column_sum)
    store_parts(parts, g, j, valid_j, BLOCK_M, to_log2)
    tl.debug_barrier()
    for t in range(1, num_iters):
        columns = tl.zeros([16, BLOCK_M], tl.float32)
        dual = dual_tile(parts, BLOCK_M)
        for first in range(0, n, BLOCK_N):
            i = first + tl.arange(0, BLOCK_N)
            valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
            S = block_logits(q, k_tile, dual, i, valid_i, q_n, D, BLOCK_D, OPERAND, PRECISION)
            if t == 1:
                f = row_shift(S, to_log2)
            else:
                f = tl.load(rows + i, mask=valid_i, other=float("-inf"))
            E = tl.exp2(biased(S, to_log2, f[:, None]))
            total = tl.sum(partial_sums(E, BLOCK_N, BLOCK_M), 1)
            tl.store(rows + i, f - tl.log2(total), mask=valid_i)
            columns += weighted_columns(E, tl.where(valid_i, 1.0 / total, 0.0))
        g += log2_ratio - tl.log2(column_sums(columns, sums, BLOCK_M))
        store_parts(parts, g, j, valid_j, BLOCK_M, to_log2)
        tl.debug_barrier()
    dual = dual_tile(parts, BLOCK_M)
    v_tile = load_tile(v + sample * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
    out += sample * out_b + h * out_h
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
        S = block_logits(q, k_tile, dual, i, valid_i, q_n, D, BLOCK_D, OPERAND, PRECISION)
        E = tl.exp2(biased(S, to_log2, row_shift(S, to_log2)[:, None]))
        total = tl.max(row_sums(E, V_OPERAND), 1)
        values = product(E, v_tile, V_OPERAND, PRECISION)
        values = tl.where(valid_i[:, None], values / total[:, None], 0.0)
        store_tile(out, i, i < n, out_n, values, V_WIDTH, BLOCK_V)


@triton.jit
def row_shift(S, to_log2):
    """Minus the largest logit of each row, 0 where there is none."""
    highest = tl.max(biased(S, to_log2, tl.zeros([1, 1], tl.float32)), 1)
    return tl.where(highest < -1e20, 0.0, -highest)
