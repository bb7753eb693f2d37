"""All updates of a head in one program, for heads too long for `logits_in_registers`.

The keys are in registers. A block of queries meets all keys at once, so a row sum is complete
before the column sums need it, and an update costs one exponential per entry, as with the logits in
registers; but every update recomputes the logits. Nothing of size n x m is stored. Limits: 16-bit q
and k, `KEYS` keys. The first column step and the final attention are passes of `tiled`. Letters:
see `kernels.tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.launch import Duals, Launch, strides
from asap_exp.ops.kernels.sinkhorn import tiled
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    block,
    fma_bias,
    load_tile,
    log2_plan,
    product,
    valid_tokens,
)

KEYS = 512
"""Maximum number of keys; with more, two passes over tiles per update are as fast."""

BLOCK_QUERIES = 32
"""Queries that meet all keys at once."""


def refusal(call: Call) -> str | None:
    """Return why this kernel does not take the call, or None if it does."""
    if call.num_iters == 1:
        return "runs the updates after the first, got num_iters=1"
    if call.m > KEYS:
        return f"takes up to {KEYS} keys, got {call.m}"
    if call.dtype == torch.float32:
        return "takes 16-bit queries and keys, got float32"
    return None


# fmt: off
@triton.jit
def updates_kernel(
    q, k, rows, cols, padding,
    q_b, q_h, q_n, k_b, k_h, k_n, rows_head, rows_t, cols_head, cols_t,
    heads, n, m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, SAVE: tl.constexpr,
):
    # fmt: on
    """Read f^0 and g^1 from `rows` and `cols`, and write f^1 .. f^(T-1) and g^2 .. g^T.

    Without SAVE, f^t overwrites f^0, and only g^T is written, in place of g^1.
    """
    head = tl.program_id(0).to(tl.int64)
    b, h = head // heads, head % heads
    j = tl.arange(0, BLOCK_M)
    valid_j = valid_tokens(padding, b, j, m, HAS_PADDING)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k + b * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
    q += b * q_b + h * q_h
    rows += head * rows_head
    cols += head * cols_head
    # [BLOCK_M]
    g = tl.load(cols + j, mask=valid_j, other=float("-inf"))
    for t in range(1, num_iters):
        # [BLOCK_M]
        column_sum = tl.zeros([BLOCK_M], tl.float32)
        before = rows
        if SAVE:
            rows += rows_t
        for first in range(0, n, BLOCK_N):
            i = first + tl.arange(0, BLOCK_N)
            valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
            # [BLOCK_N, BLOCK_D]
            q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
            # [BLOCK_M, BLOCK_N]
            S = product(k_tile, tl.trans(q_tile), OPERAND, PRECISION)
            if t == 1:
                highest = tl.max(fma_bias(S, to_log2, g[:, None]), axis=0)
                f = tl.where(highest == float("-inf"), 0.0, -highest)
            else:
                f = tl.load(before + i, mask=valid_i, other=0.0)
            # [BLOCK_M, BLOCK_N]
            E = tl.exp2(log2_plan(S, to_log2, g[:, None], f[None, :]))
            # [BLOCK_N]
            row_sum = tl.sum(E, axis=0)
            f_next = f - tl.log2(row_sum)
            tl.store(rows + i, tl.where(valid_i, f_next, 0.0), mask=i < n)
            a = tl.where(valid_i, tl.exp2(f_next - f), 0.0)  # from the dual as stored
            column_sum += tl.sum(E * a[None, :], axis=1)
        g = tl.where(valid_j, g - tl.log2(column_sum) + log2_ratio, float("-inf"))
        if SAVE:
            tl.store(cols + t * cols_t + j, tl.where(valid_j, g, 0.0), mask=j < m)
        tl.debug_barrier()  # the next update reads the rows that other threads wrote
    if not SAVE:
        tl.store(cols + j, tl.where(valid_j, g, 0.0), mask=j < m)


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None) -> None:
    """Write `out`, and all duals if they are kept; `start` is f^0, or None for zeros."""
    save = duals is not None
    rows, cols = tiled.first_duals(p, start, duals)
    updates_kernel[(p.programs,)](
        p.q, p.k, rows, cols, p.padding,
        *strides(p.q, p.k), *rows.stride()[1:3], *cols.stride()[1:3],
        p.heads, p.n, p.m, p.num_iters, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_N=BLOCK_QUERIES, BLOCK_M=block(p.m), SAVE=save, num_warps=4,
        **EVERY_LAUNCH,
    )  # fmt: skip
    last = p.num_iters - 1 if save else 0
    tiled.last_step(p, cols[:, :, last], rows[:, :, last], out, rows, save)
