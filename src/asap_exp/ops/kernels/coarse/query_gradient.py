"""The gradient of the queries of softmax_j(S + g) v, in one pass over tiles.

Letters: see `kernels.tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Launch, head_strides, strides
from asap_exp.ops.kernels.sinkhorn.tiled import head_and_tokens, plan_tile
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, load_tile, product, store_tile, valid_tokens


# fmt: off
@triton.jit
def query_gradient_kernel(
    q, k, v, grad_out, out, row, col, padding, delta, grad_q,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, go_b, go_h, go_n, out_b, out_h, out_n,
    gq_b, gq_h, gq_n, row_stride, col_stride, delta_stride,
    heads, n, m, to_log2, slope,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Compute the gradient of a block of queries, and delta_i = sum_j A_ij <grad_out_i, v_j>.

    As in flash attention, dS = A (dA - <grad_out, out>). Its rows sum to `rest`, what the rounding
    of A and `out` has left, and with that dS and delta are corrected.
    """
    head, i = head_and_tokens(n, BLOCK_N)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + b * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    # [BLOCK_N, BLOCK_V]
    do_tile = load_tile(grad_out + b * go_b + h * go_h, i, valid_i, go_n, V_WIDTH, BLOCK_V)
    out_tile = load_tile(out + b * out_b + h * out_h, i, valid_i, out_n, V_WIDTH, BLOCK_V)
    # [BLOCK_N]
    rounded = tl.sum(do_tile.to(tl.float32) * out_tile.to(tl.float32), axis=1)
    rest = tl.zeros([BLOCK_N], tl.float32)
    f = tl.load(row + head * row_stride + i, mask=valid_i, other=float("-inf"))
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    # [BLOCK_N, BLOCK_D]
    dq = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # [BLOCK_N, BLOCK_D]
    mean_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, m, BLOCK_M):
        j = first + tl.arange(0, BLOCK_M)
        valid_j = valid_tokens(padding, b, j, m, HAS_PADDING)
        # [BLOCK_M, BLOCK_D]
        k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
        # [BLOCK_N, BLOCK_M]
        S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
        g = tl.load(col + head * col_stride + j, mask=valid_j, other=float("-inf"))
        # [BLOCK_M, BLOCK_V]
        v_tile = load_tile(v, j, valid_j, v_n, V_WIDTH, BLOCK_V)
        # [BLOCK_N, BLOCK_M]
        dA = product(do_tile, tl.trans(v_tile), V_OPERAND, PRECISION)
        A = plan_tile(S, to_log2, f, g, True)
        mean_key += product(A, k_tile, OPERAND, PRECISION)
        dS = A * (dA - rounded[:, None])
        rest += tl.sum(dS, axis=1)
        dq += product(dS, k_tile, OPERAND, PRECISION)
    dq -= rest[:, None] * mean_key
    tl.store(delta + head * delta_stride + i, rounded + rest, mask=i < n)
    store_tile(grad_q + b * gq_b + h * gq_h, i, i < n, gq_n, dq * slope, D, BLOCK_D)


def query_gradient(
    p: Launch, grad_out: Tensor, out: Tensor, row: Tensor, col: Tensor, grad_q: Tensor
) -> Tensor:
    """Write the gradient of q; return delta `[B, H, N]`, where dS = A (dA - delta)."""
    delta = torch.empty_like(row)
    n_block, m_block, warps = p.gradient_tile
    query_gradient_kernel[(p.programs * triton.cdiv(p.n, n_block),)](
        p.q, p.k, p.v, grad_out, out, row, col, p.padding, delta, grad_q,
        *strides(p.q, p.k, p.v, grad_out, out, grad_q), *head_strides(row, col, delta),
        p.heads, p.n, p.m, p.to_log2, p.slope,
        **p.values, BLOCK_N=n_block, BLOCK_M=m_block, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip
    return delta
