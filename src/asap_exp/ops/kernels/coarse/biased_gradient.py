"""The gradient of softmax_j(S + col) v, from which rows and columns are known.

With A = exp(S + col + row), dA = grad_out v' and delta_i = sum_j A_ij dA_ij,

    dS = A (dA - delta),   dcol_j = sum_i dS_ij,   dv = A' grad_out.

There are no updates between, so one pass over the queries gives all gradients of the keys.
Letters: see `kernels.tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Launch, head_strides, strides
from asap_exp.ops.kernels.sinkhorn.tiled import head_and_tokens, plan_tile
from asap_exp.ops.kernels.sinkhorn.tiled_gradient import Side, row_delta, through_logits
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    load_tile,
    product,
    store_tile,
    valid_tokens,
)


# fmt: off
@triton.jit
def keys_kernel(
    q, k, v, grad_out, delta, row, col, padding, grad_k, grad_v, grad_col,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, go_b, go_h, go_n,
    gk_b, gk_h, gk_n, gv_b, gv_h, gv_n, delta_stride, row_stride, col_stride, grad_col_stride,
    heads, n, m, to_log2, slope,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Compute the gradients of k, v and col; one program per block of keys."""
    head, j = head_and_tokens(m, BLOCK_M)
    b, h = head // heads, head % heads
    valid_j = valid_tokens(padding, b, j, m, HAS_PADDING)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k + b * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
    # [BLOCK_M, BLOCK_V]
    v_tile = load_tile(v + b * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
    g = tl.load(col + head * col_stride + j, mask=valid_j, other=float("-inf"))
    q += b * q_b + h * q_h
    grad_out += b * go_b + h * go_h
    # [BLOCK_M, BLOCK_D]
    dk = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # [BLOCK_M, BLOCK_V]
    dv = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    # [BLOCK_M]
    dg = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
        # [BLOCK_N, BLOCK_D]
        q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
        # [BLOCK_N, BLOCK_V]
        do_tile = load_tile(grad_out, i, valid_i, go_n, V_WIDTH, BLOCK_V)
        # [BLOCK_M, BLOCK_N]
        S = product(k_tile, tl.trans(q_tile), OPERAND, PRECISION)
        f = tl.load(row + head * row_stride + i, mask=valid_i, other=float("-inf"))
        # [BLOCK_M, BLOCK_N]
        A = plan_tile(S, to_log2, g, f, False)
        dv += product(A, do_tile, V_OPERAND, PRECISION)
        # [BLOCK_M, BLOCK_N]
        dA = product(v_tile, tl.trans(do_tile), V_OPERAND, PRECISION)
        dA -= tl.load(delta + head * delta_stride + i, mask=valid_i, other=0.0)[None, :]
        dS = A * dA
        dg += tl.sum(dS, axis=1)
        dk += product(dS, q_tile, OPERAND, PRECISION)
    store_tile(grad_k + b * gk_b + h * gk_h, j, j < m, gk_n, dk * slope, D, BLOCK_D)
    store_tile(grad_v + b * gv_b + h * gv_h, j, j < m, gv_n, dv, V_WIDTH, BLOCK_V)
    tl.store(grad_col + head * grad_col_stride + j, dg, mask=j < m)


def launch(
    p: Launch, grad_out: Tensor, row: Tensor, col: Tensor, grads: tuple[Tensor, ...]
) -> Tensor:
    """Write the gradients of q, k and v, and return that of `col`; duals in units of log 2."""
    grad_q, grad_k, grad_v = grads
    delta, grad_col = row_delta(p, grad_out, row, col), torch.empty_like(col)
    x_block, y_block, warps = p.gradient_tile
    keys_kernel[(p.programs * triton.cdiv(p.m, x_block),)](
        p.q, p.k, p.v, grad_out, delta, row, col, p.padding, grad_k, grad_v, grad_col,
        *strides(p.q, p.k, p.v, grad_out, grad_k, grad_v),
        *head_strides(delta, row, col, grad_col), p.heads, p.n, p.m, p.to_log2, p.slope,
        **p.values, BLOCK_N=y_block, BLOCK_M=x_block, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip
    queries = Side(p.q, grad_out, row[:, :, None], row.new_empty(*row.shape[:2], 0, p.n))
    keys = Side(p.k, p.v, col[:, :, None], col.new_empty(*col.shape[:2], 0, p.m))
    through_logits(p, queries, keys, delta, grad_q, x_is_query=True)
    return grad_col
