"""The last duals of a subset in one launch, with sums on the matrix units.

As in `coarse.subset`, with one program per head and E = exp(S + f + g'), but f is without the
logarithm of w, and so is a = exp(f^t - f):

    b_j = (n / m) w_j / sum_i E_ij w_i a_i,   a_i = 1 / sum_j E_ij b_j.
"""

import triton
import triton.language as tl

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.coarse.subset import SubsetDuals, chosen, subset_strides
from asap_exp.ops.kernels.launch import Launch, strides
from asap_exp.ops.kernels.sinkhorn.half_plan import row_dual, updated
from asap_exp.ops.kernels.sinkhorn.logits_in_registers import column_dual
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    block,
    load_tile,
    product,
)
from asap_exp.ops.subsets import Subset


def refusal(call: Call) -> str | None:
    """Return why the kernel does not run the updates, or None if it does."""
    if call.keeps_duals or call.gradient:
        return "keeps no duals for a gradient"
    if call.has_float32:
        return "takes 16-bit inputs, got float32"
    if call.num_iters == 1:
        return "runs at least one update on the subset, got num_iters=1"
    return None


def slower(call: Call) -> str:
    """Return why the other route is taken."""
    return "is not timed on a GPU yet"


# fmt: off
@triton.jit
def products_kernel(
    q, k, q_tokens, k_tokens, q_weight, k_weight, padding, rows, cols,
    q_b, q_h, q_n, k_b, k_h, k_n, qt_b, qt_h, kt_b, kt_h, qw_b, qw_h, kw_b, kw_h,
    heads, n, m, num_queries, num_keys, num_updates, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, BLOCK_PADDING: tl.constexpr,
):
    # fmt: on
    """Store the duals of a head's subset after `num_updates` >= 1 updates."""
    head = tl.program_id(0).to(tl.int64)
    b, h = head // heads, head % heads
    c, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    i, log_w = chosen(
        q_tokens + b * qt_b + h * qt_h, q_weight + b * qw_b + h * qw_h, padding, b, n, c,
        num_queries, HAS_PADDING, BLOCK_PADDING,
    )  # fmt: skip
    j, log_u = chosen(
        k_tokens + b * kt_b + h * kt_h, k_weight + b * kw_b + h * kw_h, padding, b, m, d,
        num_keys, HAS_PADDING, BLOCK_PADDING,
    )  # fmt: skip
    valid_i, valid_j = log_w > float("-inf"), log_u > float("-inf")
    w = tl.where(valid_i, tl.exp2(log_w), 0.0)
    u = tl.where(valid_j, tl.exp2(log_u + log2_ratio), 0.0)
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
    # [BLOCK_N, BLOCK_M]
    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
    # [BLOCK_M]
    g = column_dual(S, log_w, valid_j, to_log2, log2_ratio) + log_u
    # [BLOCK_N]
    f = row_dual(S, g, valid_i, to_log2)
    f, g = updated(
        f, g, w, u, q, k, q_n, k_n, i, j, valid_i, valid_j, num_updates - 1, to_log2,
        D, BLOCK_D, OPERAND, PRECISION,
    )  # fmt: skip
    rows += head * num_queries + c
    cols += head * num_keys + d
    tl.store(rows, f + log_w, mask=c < num_queries)
    tl.store(cols, g, mask=d < num_keys)


def launch(
    p: Launch, subset: Subset, key_subset: Subset, duals: SubsetDuals, *, save: bool
) -> None:
    """Write the duals of a subset after `p.num_iters` - 1 updates; `save` is False."""
    num_queries, num_keys = subset.tokens.shape[2], key_subset.tokens.shape[2]
    products_kernel[(p.programs,)](
        p.q, p.k, subset.tokens, key_subset.tokens, subset.weight, key_subset.weight, p.padding,
        *duals, *strides(p.q, p.k), *subset_strides(subset, key_subset),
        p.heads, p.n, p.m, num_queries, num_keys, p.num_iters - 1, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_N=block(num_queries), BLOCK_M=block(num_keys),
        BLOCK_PADDING=min(block(p.n), 1024),
        num_warps=warps(max(num_queries, num_keys)), **EVERY_LAUNCH,
    )  # fmt: skip


def warps(count: int) -> int:
    """Return the warps of a program for `count` tokens: one needs no barriers."""
    return 1 if count <= 64 else 8
