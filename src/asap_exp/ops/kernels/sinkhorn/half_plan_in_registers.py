"""Finite-T Sinkhorn attention with a head's plan in registers, as a `half_plan`; no gradient.

As in `sinkhorn.logits_in_registers` there is one program per head, but sums are products on the
matrix units. The last row step is a softmax over S + g^T in float32, so that rows of the plan sum
to 1 as exactly as elsewhere.
"""

import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.launch import Duals, Launch, strides
from asap_exp.ops.kernels.sinkhorn import logits_in_registers
from asap_exp.ops.kernels.sinkhorn.half_plan import row_dual, updated
from asap_exp.ops.kernels.sinkhorn.logits_in_registers import column_dual
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    IN_LOG2,
    block,
    fma_bias,
    load_tile,
    product,
    store_tile,
    valid_tokens,
)


def refusal(call: Call) -> str | None:
    """Return why this kernel does not take the call, or None if it does."""
    if call.keeps_duals or call.gradient:
        return "keeps no duals for a gradient"
    if call.has_float32:
        return "takes 16-bit inputs, got float32"
    if call.num_iters == 1:
        return "runs two or more updates, got num_iters=1"
    return logits_in_registers.refusal(call)


def slower(call: Call) -> str:
    """Return why the other route is taken."""
    return "is not timed on a GPU yet"


# fmt: off
@triton.jit
def half_plan_kernel(
    q, k, v, start, padding, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    heads, n, m, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Compute the output of a head after `num_iters` >= 2 updates."""
    head = tl.program_id(0).to(tl.int64)
    sample, h = head // heads, head % heads
    i, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
    valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
    q += sample * q_b + h * q_h
    k += sample * k_b + h * k_h
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
    # [BLOCK_N, BLOCK_M]
    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
    # [BLOCK_N]
    f = tl.zeros([BLOCK_N], tl.float32)
    if HAS_START:
        f += tl.load(start + head * n + i, mask=valid_i, other=0.0) * IN_LOG2
    f = tl.where(valid_i, f, float("-inf"))
    # [BLOCK_M]
    g = column_dual(S, f, valid_j, to_log2, log2_ratio)
    f = row_dual(S, g, valid_i, to_log2)
    f, g = updated(
        f, g, tl.where(valid_i, 1.0, 0.0), tl.exp2(log2_ratio), q, k, q_n, k_n, i, j,
        valid_i, valid_j, num_iters - 1, to_log2, D, BLOCK_D, OPERAND, PRECISION,
    )  # fmt: skip
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
    # [BLOCK_N, BLOCK_M]
    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
    f = row_dual(S, g, valid_i, to_log2)
    A = tl.exp2(fma_bias(S, to_log2, g[None, :]) + f[:, None])
    # [BLOCK_M, BLOCK_V]
    v_tile = load_tile(v + sample * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
    # [BLOCK_N, BLOCK_V]
    values = product(A, v_tile, V_OPERAND, PRECISION)
    store_tile(out + sample * out_b + h * out_h, i, i < n, out_n, values, V_WIDTH, BLOCK_V)


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None) -> None:
    """Write `out`; `start` is f^0, or None for zeros, and `duals` is None."""
    half_plan_kernel[(p.programs,)](
        p.q, p.k, p.v, start, p.padding, out, *strides(p.q, p.k, p.v, out),
        p.heads, p.n, p.m, p.num_iters, p.to_log2, p.log2_ratio,
        **p.values, BLOCK_N=block(p.n), BLOCK_M=block(p.m), HAS_START=start is not None,
        num_warps=warps(p), **EVERY_LAUNCH,
    )  # fmt: skip


def warps(p: Launch) -> int:
    """Return the warps of a program: one needs no barriers."""
    return p.register_warps(1, 8)
