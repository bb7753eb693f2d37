"""All updates of a head in one program, its plan on chip: for bfloat16 inputs, no gradient.

E = exp(S + f + g) serves many updates, as in `short`: they work on scalings alone, which start
at 1: a_i = 1 / sum_j E_ij b_j, b_j = (n / m) / sum_i E_ij a_i. Both sums are products of the
matrix units, of E in bfloat16 and a scaling in two bfloat16 parts. E lies in shared memory, once:
the units read it from there by rows and by columns. It comes by way of global memory, block by
block; so that this stays small, there are as many programs as run at a time, each with many heads.

By its rounding every entry of E is off by at most 2^-9 of itself, and so are the sums. The output
is the closure of the last dual of the keys, from logits computed anew.

After four updates the scalings are absorbed into f and g, and E is computed anew: for all that are
left, unless these could move a scaling far. The map from one update to the next is nonexpansive in
log a and log b, so no update moves any of them further than the update before it did.
"""

import triton
import triton.language as tl

from asap_exp.ops.triton.folded import row_sums
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

CAUTIOUS = tl.constexpr(4)
"""So many updates are safe wherever they start: they change a scaling by at most (n m)^4."""

FARTHEST = tl.constexpr(24.0)
"""So far, in units of log 2, more updates than that may move a scaling with the same E."""


@triton.jit
def weighted_sums(E, weight, PRECISION: tl.constexpr):
    """sum_y E_xy weight_y, `[x]`: what is lost as a weight is rounded has a column of its own."""
    part = tl.arange(0, 16)[None, :]
    high = weight.to(tl.bfloat16)
    low = (weight - high.to(tl.float32)).to(tl.bfloat16)
    parts = tl.where(part == 0, high[:, None], tl.where(part == 1, low[:, None], 0.0))
    return tl.sum(product(E, parts, tl.bfloat16, PRECISION), 1)


@triton.jit
def row_shift(X):
    """Minus the largest of each row, 0 where there is none."""
    highest = tl.max(X, 1)
    return tl.where(highest == float("-inf"), 0.0, -highest)


# fmt: off
@triton.jit
def first_columns(
    q, k_tile, start, padding, sample, q_n, n, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Minus the log of sum_i exp(S + f^0), `[keys]`, with `start` = f^0."""
    highest = tl.full([BLOCK_ROWS, BLOCK_M], float("-inf"), tl.float32)
    for first in range(0, n, BLOCK_ROWS):
        i = first + tl.arange(0, BLOCK_ROWS)
        valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
        S = product(load_tile(q, i, valid_i, q_n, D, BLOCK_D), tl.trans(k_tile), OPERAND, PRECISION)
        f = start_dual(start, i, valid_i, HAS_START)
        highest = tl.maximum(highest, biased(S, to_log2, f[:, None]))
    shift = tl.max(highest, 0)
    shift = tl.where(shift == float("-inf"), 0.0, -shift)
    total = tl.zeros([BLOCK_ROWS, BLOCK_M], tl.float32)
    for first in range(0, n, BLOCK_ROWS):
        i = first + tl.arange(0, BLOCK_ROWS)
        valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
        S = product(load_tile(q, i, valid_i, q_n, D, BLOCK_D), tl.trans(k_tile), OPERAND, PRECISION)
        f = start_dual(start, i, valid_i, HAS_START)
        total += tl.exp2(exponent(S, to_log2, f[:, None], shift[None, :]))
    return shift - tl.log2(tl.sum(total, 0))


@triton.jit
def start_dual(start, index, valid, HAS_START: tl.constexpr):
    """f^0 in units of log 2, -inf where not valid."""
    if HAS_START:
        return tl.load(start + index, mask=valid, other=float("-inf")) * IN_LOG2
    return tl.where(valid, 0.0, float("-inf"))


# fmt: off
@triton.jit
def store_plan(
    plan, q, k_tile, rows, g, padding, sample, q_n, n, to_log2, is_first,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """E of the head into `plan`; where it `is_first`, f = -max_j(S + g) into `rows`."""
    j = tl.arange(0, BLOCK_M)
    for first in range(0, BLOCK_N, BLOCK_ROWS):
        i = first + tl.arange(0, BLOCK_ROWS)
        valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
        S = product(load_tile(q, i, valid_i, q_n, D, BLOCK_D), tl.trans(k_tile), OPERAND, PRECISION)
        if is_first:
            f = row_shift(biased(S, to_log2, g[None, :]))
            tl.store(rows + i, f)
        else:
            f = tl.load(rows + i)
        f = tl.where(valid_i, f, float("-inf"))
        E = tl.exp2(exponent(S, to_log2, g[None, :], f[:, None]))
        tl.store(plan + i[:, None] * BLOCK_M + j[None, :], E.to(tl.bfloat16))


# fmt: off
@triton.jit
def last_dual(
    plan, q, k_tile, rows, g, padding, sample, q_n, n, m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """g^T from g^1; room for the plan in `plan` `[BLOCK_N, BLOCK_M]`, for f in `rows`."""
    i, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
    valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
    ratio = tl.exp2(log2_ratio)
    t = 1
    steps = tl.minimum(num_iters - 1, CAUTIOUS)
    while t < num_iters:
        store_plan(
            plan, q, k_tile, rows, g, padding, sample, q_n, n, to_log2, t == 1,
            D, BLOCK_D, BLOCK_N, BLOCK_ROWS, BLOCK_M, OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip
        tl.debug_barrier()  # other threads wrote what is read here, before and after the updates
        E = tl.load(plan + i[:, None] * BLOCK_M + j[None, :])
        a, b = tl.where(valid_i, 1.0, 0.0), tl.where(valid_j, 1.0, 0.0)
        before = b
        for _ in range(steps):
            before = b
            a = tl.where(valid_i, 1.0 / weighted_sums(E, b, PRECISION), 0.0)
            b = tl.where(valid_j, ratio / weighted_sums(tl.trans(E), a, PRECISION), 0.0)
        tl.store(rows + i, tl.load(rows + i) + moved(a, valid_i))
        tl.debug_barrier()
        g += moved(b, valid_j)
        t += steps
        left = num_iters - t
        step = tl.max(tl.abs(moved(b, valid_j) - moved(before, valid_j)))
        steps = tl.where(step * left <= FARTHEST, left, tl.minimum(left, CAUTIOUS))
    return g


# fmt: off
@triton.jit
def forward_kernel(
    q, k, v, start, padding, rows, plans, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    all_heads, heads, n, m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """A program does every so many-th of `all_heads`, with `rows` `[programs, BLOCK_N]` and
    `plans` `[programs, BLOCK_N, BLOCK_M]` as its room.
    """
    room = tl.program_id(0).to(tl.int64)
    rows += room * BLOCK_N
    plans += room * BLOCK_N * BLOCK_M
    j = tl.arange(0, BLOCK_M)
    for number in range(tl.program_id(0), all_heads, tl.num_programs(0)):
        head = tl.cast(number, tl.int64)
        sample, h = head // heads, head % heads
        valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
        k_tile = load_tile(k + sample * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
        q_head = q + sample * q_b + h * q_h
        start_head = start
        if HAS_START:
            start_head += head * n
        g = log2_ratio + first_columns(
            q_head, k_tile, start_head, padding, sample, q_n, n, to_log2,
            D, BLOCK_D, BLOCK_ROWS, BLOCK_M, OPERAND, PRECISION, HAS_START, HAS_PADDING,
        )  # fmt: skip
        g = last_dual(
            plans, q_head, k_tile, rows, tl.where(valid_j, g, float("-inf")), padding, sample,
            q_n, n, m, num_iters, to_log2, log2_ratio,
            D, BLOCK_D, BLOCK_N, BLOCK_ROWS, BLOCK_M, OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip
        v_tile = load_tile(v + sample * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
        for first in range(0, n, BLOCK_ROWS):
            i = first + tl.arange(0, BLOCK_ROWS)
            valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
            q_tile = load_tile(q_head, i, valid_i, q_n, D, BLOCK_D)
            X = biased(product(q_tile, tl.trans(k_tile), OPERAND, PRECISION), to_log2, g[None, :])
            E = tl.exp2(X + row_shift(X)[:, None])
            total = tl.max(row_sums(E, V_OPERAND), 1)
            values = product(E, v_tile, V_OPERAND, PRECISION)
            values = tl.where(valid_i[:, None], values / total[:, None], 0.0)
            out_head = out + sample * out_b + h * out_h
            store_tile(out_head, i, i < n, out_n, values, V_WIDTH, BLOCK_V)
