"""All updates of a head in one program, its plan in shared memory: bfloat16, no gradient, Hopper.

E = exp(S + f + g) serves many updates, as in `logits_in_registers`. They work only on scalings,
which start at 1: a_i = 1 / sum_j E_ij b_j, b_j = (n / m) / sum_i E_ij a_i. The matrix units compute
both sums as products of E in bfloat16 with a scaling in two bfloat16 parts, reading one copy of E
in shared memory by rows and by columns. E gets there through global memory, block by block; to keep
that buffer small, only as many programs are launched as run at once, each with many heads.

Rounding gives every entry of E, and so the sums, a relative error of at most 2^-9. The output is
the closure of the last dual of the keys, from recomputed logits, by a pass of `tiled_bf16`; the
first column step is a pass of `closure.keys_and_values_in_registers`.

After four updates, E serves for all remaining ones, unless these could move a scaling far: then the
scalings are folded into f and g, and E is recomputed. The map from one update to the next is
nonexpansive in log a and log b, so no update moves either further than the previous one did.

Limits: `closure.TOKENS` tokens on either side and 64 channels. Letters: see `kernels.tiles`.
"""

import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call, device_of
from asap_exp.ops.kernels.closure import keys_and_values_in_registers as closure
from asap_exp.ops.kernels.launch import Duals, Launch, strides
from asap_exp.ops.kernels.sinkhorn import logits_in_registers, tiled_bf16
from asap_exp.ops.kernels.sinkhorn.tiled_bf16 import Side, store_parts
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    block,
    fma_bias,
    load_tile,
    log2_plan,
    log2_scaling,
    product,
    valid_tokens,
)

MANY_UPDATES, MANY_UPDATES_TOKENS = 10, 64
"""Updates and (exclusive) tokens from which this is faster than the logits in registers."""

SOME_UPDATES = 4
"""Updates from which this is faster than recomputing the logits in each, for lengths whose logits
do not fit in registers.
"""

BLOCK_QUERIES = 64
"""Queries per block of the plan."""

SAFE_UPDATES = tl.constexpr(4)
"""Updates that are safe from any start: they change a scaling by at most (n m)^4."""

FARTHEST_SCALING = tl.constexpr(24.0)
"""Distance, in units of log 2, by which further updates may move a scaling with the same E."""


def refusal(call: Call) -> str | None:
    """Return why this kernel does not take the call, or None if it does."""
    if call.num_iters == 1:
        return "runs the updates after the first, got num_iters=1"
    return tiled_bf16.refusal(call) or closure.key_refusal(call)


def slower(call: Call) -> str | None:
    """Return why another route is faster, or None if this one is the fastest."""
    if call.longest > logits_in_registers.TOKENS:
        least, at = SOME_UPDATES, f"more than {logits_in_registers.TOKENS}"
    else:
        least, at = MANY_UPDATES, f"{MANY_UPDATES_TOKENS + 1} to {logits_in_registers.TOKENS}"
    if call.longest <= MANY_UPDATES_TOKENS:
        return f"up to {MANY_UPDATES_TOKENS} tokens are faster with their logits in registers"
    if call.num_iters < least:
        return f"fewer than {least} updates of {at} tokens are faster with logits recomputed"
    return None


@triton.jit
def weighted_sums(E, weight, PRECISION: tl.constexpr):
    """Return sum_y E_xy weight_y, `[x]`; one column holds the rounding error of the weights."""
    part = tl.arange(0, 16)[None, :]
    high = weight.to(tl.bfloat16)
    low = (weight - high.to(tl.float32)).to(tl.bfloat16)
    parts = tl.where(part == 0, high[:, None], tl.where(part == 1, low[:, None], 0.0))
    return tl.sum(product(E, parts, tl.bfloat16, PRECISION), 1)


@triton.jit
def row_shift(X):
    """Return minus the largest entry of each row, 0 where there is none."""
    highest = tl.max(X, 1)
    return tl.where(highest == float("-inf"), 0.0, -highest)


# fmt: off
@triton.jit
def store_plan(
    plan, q, k_tile, rows, g, padding, sample, q_n, n, to_log2, is_first,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Store E of the head into `plan`; if `is_first`, store f = -max_j(S + g) into `rows`."""
    j = tl.arange(0, BLOCK_M)
    i = tl.arange(0, BLOCK_ROWS)
    valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
    # [BLOCK_ROWS, BLOCK_D]
    q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
    for _ in range(0, BLOCK_N, BLOCK_ROWS):
        # [BLOCK_ROWS, BLOCK_M]
        S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
        following = i + BLOCK_ROWS
        valid_following = valid_tokens(padding, sample, following, n, HAS_PADDING)
        q_tile = load_tile(q, following, valid_following, q_n, D, BLOCK_D)  # prefetch
        if is_first:
            f = row_shift(fma_bias(S, to_log2, g[None, :]))
            tl.store(rows + i, f, mask=i < n)
        else:
            f = tl.load(rows + i, mask=i < n, other=0.0)
        f = tl.where(valid_i, f, float("-inf"))
        # [BLOCK_ROWS, BLOCK_M]
        E = tl.exp2(log2_plan(S, to_log2, g[None, :], f[:, None]))
        tl.store(plan + i[:, None] * BLOCK_M + j[None, :], E.to(tl.bfloat16))
        i, valid_i = following, valid_following


# fmt: off
@triton.jit
def last_dual(
    plan, q, k_tile, rows, g, padding, sample, q_n, n, m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Return g^T computed from g^1, and store f^(T-1) into `rows`; `plan` is a buffer for E."""
    i, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
    valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
    ratio = tl.exp2(log2_ratio)
    t = 1
    while t < num_iters:
        store_plan(
            plan, q, k_tile, rows, g, padding, sample, q_n, n, to_log2, t == 1,
            D, BLOCK_D, BLOCK_N, BLOCK_ROWS, BLOCK_M, OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip
        tl.debug_barrier()  # other threads wrote what is read here, before and after the updates
        # [BLOCK_N, BLOCK_M]
        E = tl.load(plan + i[:, None] * BLOCK_M + j[None, :])
        a, b = tl.where(valid_i, 1.0, 0.0), tl.where(valid_j, 1.0, 0.0)
        steps = tl.minimum(num_iters - t, SAFE_UPDATES)
        while steps > 0:
            before = b
            for _ in range(steps):
                # Not `before = b`: both begin alike, and Triton's compiler takes for a constant
                # what is the same object after one iteration.
                before = tl.where(valid_j, b, 0.0)
                a = tl.where(valid_i, 1.0 / weighted_sums(E, b, PRECISION), 0.0)
                b = tl.where(valid_j, ratio / weighted_sums(tl.trans(E), a, PRECISION), 0.0)
            t += steps
            left = num_iters - t
            so_far = tl.max(tl.abs(log2_scaling(b, valid_j)))
            step = tl.max(tl.abs(log2_scaling(b, valid_j) - log2_scaling(before, valid_j)))
            steps = tl.where(so_far + step * left <= FARTHEST_SCALING, left, 0)
        f = tl.load(rows + i, mask=i < n, other=0.0)
        tl.store(rows + i, f + log2_scaling(a, valid_i), mask=i < n)
        tl.debug_barrier()
        g += log2_scaling(b, valid_j)
    return g


# fmt: off
@triton.jit
def updates_kernel(
    q, k, padding, rows, cols, col_parts, plans,
    q_b, q_h, q_n, k_b, k_h, k_n, cols_stride,
    all_heads, heads, n, m, padded_m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Compute the parts of g^T into `col_parts` and f^(T-1) into `rows`, from g^1 in `cols`.

    Each program takes every num_programs-th of `all_heads`; its part of `plans` `[programs,
    BLOCK_N, BLOCK_M]` is its buffer.
    """
    plans += tl.program_id(0).to(tl.int64) * BLOCK_N * BLOCK_M
    j = tl.arange(0, BLOCK_M)
    for number in range(tl.program_id(0), all_heads, tl.num_programs(0)):
        head = tl.cast(number, tl.int64)
        sample, h = head // heads, head % heads
        valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
        # [BLOCK_M, BLOCK_D]
        k_tile = load_tile(k + sample * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
        # [BLOCK_M]
        g = tl.load(cols + head * cols_stride + j, mask=valid_j, other=float("-inf"))
        g = last_dual(
            plans, q + sample * q_b + h * q_h, k_tile, rows + head * n, g, padding, sample,
            q_n, n, m, num_iters, to_log2, log2_ratio,
            D, BLOCK_D, BLOCK_N, BLOCK_ROWS, BLOCK_M, OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip
        store_parts(col_parts + head * 3 * padded_m, g, j, valid_j, padded_m, to_log2)


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None = None) -> None:
    """Write `out`; `start` is f^0, or None for zeros. No duals are kept."""
    queries, keys = Side(p.q), Side(p.k)
    cols = closure.column_step(p, start)
    smallest, warps, programs_at_a_time = (64, 4, 2) if max(p.n, p.m) <= 128 else (128, 8, 1)
    n_block, m_block = (max(block(count), smallest) for count in (p.n, p.m))
    # At most this many programs, each with a plan in shared memory, run at once.
    programs = min(p.programs, max(1, programs_at_a_time * device_of(p.q).multiprocessors))
    updates_kernel[(programs,)](
        p.q, p.k, p.padding, queries.dual, cols, keys.parts,
        p.q.new_empty(programs, n_block, m_block), *strides(p.q, p.k), cols.stride(0),
        p.programs, p.heads, p.n, p.m, keys.padded, p.num_iters, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_N=n_block, BLOCK_ROWS=BLOCK_QUERIES, BLOCK_M=m_block,
        num_warps=warps, num_stages=1, **EVERY_LAUNCH,
    )  # fmt: skip
    tiled_bf16.attention(p, queries.dual, keys, out)
