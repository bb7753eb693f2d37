"""The forward pass of `short` with E in 16 bits and its sums on the matrix units.

    sum_j E_ij b_j as a product with the columns [b rounded, what the rounding left, 0, ...],

so the scalings keep 22 bits while E keeps 11: its rounding moves the duals by 1e-4, and the plan
itself is made of 16-bit numbers anyway. For 16-bit inputs, without a gradient.
"""

import triton
import triton.language as tl

from asap_exp.ops.triton.tiles import (
    IN_LOG2,
    biased,
    exponent,
    load_tile,
    moved,
    product,
    store_tile,
    valid_tokens,
)

RESIDUE = tl.constexpr(2048.0)
FARTHEST = tl.constexpr(6.0)


@triton.jit
def scaled_sums(E, scaling):
    """sum_j E_ij scaling_j."""
    column = tl.arange(0, 16)[None, :]
    high = scaling.to(tl.float16)
    low = ((scaling - high.to(tl.float32)) * RESIDUE).to(tl.float16)
    parts = tl.where(column == 0, high[:, None], tl.where(column == 1, low[:, None], 0.0))
    sums = product(E, parts, tl.float16, "ieee")
    shares = tl.where(column == 0, 1.0, tl.where(column == 1, 1.0 / RESIDUE, 0.0))
    return tl.sum(sums * shares, axis=1)


@triton.jit
def half_logits(
    q, k_tile, i, valid_i, q_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """<q_i, k_j>. Made where it is needed: kept, it would cost more than it takes to make."""
    d = tl.arange(0, BLOCK_D)
    place = q + i[:, None].to(tl.int64) * q_n + d[None, :]
    # Volatile, or the compiler would keep the first tile of logits for the later calls.
    q_tile = tl.load(place, valid_i[:, None] & (d < D)[None, :], other=0.0, volatile=True)
    return product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)


@triton.jit
def first_row_step(S, to_log2, g, valid_i):
    """f^1 of these queries, and their rows of the plan, in 16 bits."""
    highest = tl.max(biased(S, to_log2, g[None, :]), axis=1)
    f = tl.where(highest == float("-inf"), 0.0, -highest)
    X = tl.exp2(exponent(S, to_log2, g[None, :], f[:, None]))
    total = tl.sum(X, axis=1)
    E = X * tl.where(valid_i, 1.0 / total, 0.0)[:, None]
    return tl.where(valid_i, f - tl.log2(total), float("-inf")), E.to(tl.float16)


# fmt: off
@triton.jit
def forward_kernel(
    q, k, v, start, padding, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    heads, n, m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr, TWO: tl.constexpr,
):
    # fmt: on
    """One program a head, its queries in one or TWO blocks of BLOCK_N (names with 0 and 1)."""
    head = tl.program_id(0).to(tl.int64)
    sample, h = head // heads, head % heads
    i0, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    i1 = i0 + BLOCK_N
    valid0 = valid_tokens(padding, sample, i0, n, HAS_PADDING)
    valid1 = valid_tokens(padding, sample, i1, n, HAS_PADDING)
    valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
    q += sample * q_b + h * q_h
    k_tile = load_tile(k + sample * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
    ratio = tl.exp2(log2_ratio)

    f0 = tl.where(valid0, 0.0, float("-inf"))
    f1 = tl.where(valid1, 0.0, float("-inf"))
    if HAS_START:
        f0 += tl.load(start + head * n + i0, mask=valid0, other=0.0) * IN_LOG2
        f1 += tl.load(start + head * n + i1, mask=valid1, other=0.0) * IN_LOG2
    S = half_logits(q, k_tile, i0, valid0, q_n, D, BLOCK_D, OPERAND, PRECISION)
    highest = tl.max(biased(S, to_log2, f0[:, None]), axis=0)
    if TWO:
        S = half_logits(q, k_tile, i1, valid1, q_n, D, BLOCK_D, OPERAND, PRECISION)
        highest = tl.maximum(highest, tl.max(biased(S, to_log2, f1[:, None]), axis=0))
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    S = half_logits(q, k_tile, i0, valid0, q_n, D, BLOCK_D, OPERAND, PRECISION)
    total = tl.sum(tl.exp2(biased(S, to_log2, f0[:, None]) - highest[None, :]), axis=0)
    if TWO:
        S = half_logits(q, k_tile, i1, valid1, q_n, D, BLOCK_D, OPERAND, PRECISION)
        total += tl.sum(tl.exp2(biased(S, to_log2, f1[:, None]) - highest[None, :]), axis=0)
    g = tl.where(valid_j, log2_ratio - highest - tl.log2(total), float("-inf"))
    S = half_logits(q, k_tile, i0, valid0, q_n, D, BLOCK_D, OPERAND, PRECISION)
    f0, E0 = first_row_step(S, to_log2, g, valid0)
    a0 = tl.where(valid0, 1.0, 0.0)
    if TWO:
        S = half_logits(q, k_tile, i1, valid1, q_n, D, BLOCK_D, OPERAND, PRECISION)
        f1, E1 = first_row_step(S, to_log2, g, valid1)
        a1 = tl.where(valid1, 1.0, 0.0)
    b = tl.where(valid_j, 1.0, 0.0)
    for _ in range(1, num_iters):
        column_sum = scaled_sums(tl.trans(E0), a0)
        if TWO:
            column_sum += scaled_sums(tl.trans(E1), a1)
        b = tl.where(valid_j, ratio / column_sum, 0.0)
        a0 = tl.where(valid0, 1.0 / scaled_sums(E0, b), 0.0)
        farthest = tl.maximum(tl.max(tl.abs(moved(b, valid_j))), tl.max(tl.abs(moved(a0, valid0))))
        if TWO:
            a1 = tl.where(valid1, 1.0 / scaled_sums(E1, b), 0.0)
            farthest = tl.maximum(farthest, tl.max(tl.abs(moved(a1, valid1))))
        if farthest > FARTHEST:
            g += moved(b, valid_j)
            b = tl.where(valid_j, 1.0, 0.0)
            f0 += moved(a0, valid0)
            a0 = tl.where(valid0, 1.0, 0.0)
            S = half_logits(q, k_tile, i0, valid0, q_n, D, BLOCK_D, OPERAND, PRECISION)
            E0 = tl.exp2(exponent(S, to_log2, g[None, :], f0[:, None])).to(tl.float16)
            if TWO:
                f1 += moved(a1, valid1)
                a1 = tl.where(valid1, 1.0, 0.0)
                S = half_logits(q, k_tile, i1, valid1, q_n, D, BLOCK_D, OPERAND, PRECISION)
                E1 = tl.exp2(exponent(S, to_log2, g[None, :], f1[:, None])).to(tl.float16)
    out += sample * out_b + h * out_h
    v_tile = load_tile(v + sample * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
    A = E0.to(tl.float32) * b[None, :] * a0[:, None]
    values = product(A, v_tile, V_OPERAND, PRECISION)
    store_tile(out, i0, i0 < n, out_n, values, V_WIDTH, BLOCK_V)
    if TWO:
        A = E1.to(tl.float32) * b[None, :] * a1[:, None]
        values = product(A, v_tile, V_OPERAND, PRECISION)
        store_tile(out, i1, i1 < n, out_n, values, V_WIDTH, BLOCK_V)
