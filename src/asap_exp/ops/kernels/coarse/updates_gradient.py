"""The gradient of a subset's updates in one launch, one program per head.

Backward from the gradients of the last f' and g' of `coarse.subset`, either or both, with

    R^t_ij = exp(S + g'^t_j + f'^t_i) / w_i,   C^t_ij = exp(S + f'^(t-1)_i + g'^t_j) / (u_j n / m),
    dg'^t_j -= sum_i R^t_ij df^t_i,   df^(t-1)_i = -sum_j C^t_ij dg^t_j,

    dS = -sum_t (R^t_ij df^t_i + C^t_ij dg^t_j).

Letters: see `kernels.tiles`.
"""

import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.coarse.subset import SubsetDuals, chosen, subset_strides, warps
from asap_exp.ops.kernels.launch import Launch, strides
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block, load_tile, log2_plan, product
from asap_exp.ops.subsets import Subset


@triton.jit
def add_rows(place, index, valid, stride, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Add a tile to the rows `index` of a matrix, where valid; no two are the same row."""
    d = tl.arange(0, BLOCK)
    place += index[:, None].to(tl.int64) * stride + d[None, :]
    mask = valid[:, None] & (d < WIDTH)[None, :]
    before = tl.load(place, mask=mask, other=0.0)
    tl.store(place, (before.to(tl.float32) + tile).to(place.dtype.element_ty), mask=mask)


# fmt: off
@triton.jit
def gradient_kernel(
    q, k, q_tokens, k_tokens, q_weight, k_weight, padding, rows, cols,
    grad_rows, grad_queries, grad_cols, grad_keys, grad_q, grad_k,
    q_b, q_h, q_n, k_b, k_h, k_n, gq_b, gq_h, gq_n, gk_b, gk_h, gk_n,
    qt_b, qt_h, kt_b, kt_h, qw_b, qw_h, kw_b, kw_h,
    heads, n, m, num_queries, num_keys, num_updates, to_log2, log2_ratio, slope,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, BLOCK_PADDING: tl.constexpr,
    OF_ROWS: tl.constexpr, OF_COLS: tl.constexpr,
):
    # fmt: on
    """Add the gradients of a head's subset to `grad_q` and `grad_k`.

    With OF_ROWS, `grad_rows` is the gradient of the last f' and `grad_queries` the further gradient
    of the subset's queries; with OF_COLS, `grad_cols` is that of the last g', and `grad_keys`.
    """
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
    log_w, log_u = tl.where(valid_i, log_w, 0.0), tl.where(valid_j, log_u + log2_ratio, 0.0)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + b * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k + b * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
    # [BLOCK_N, BLOCK_M]
    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
    dS = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    rows += head * (num_updates + 1) * num_queries + c
    cols += head * num_updates * num_keys + d
    # [BLOCK_N]
    df = tl.zeros([BLOCK_N], tl.float32)
    # [BLOCK_M]
    dg = tl.zeros([BLOCK_M], tl.float32)
    if OF_ROWS:
        df += tl.load(grad_rows + head * num_queries + c, mask=valid_i, other=0.0)
    if OF_COLS:
        dg += tl.load(grad_cols + head * num_keys + d, mask=valid_j, other=0.0)
    for s in range(num_updates):
        t = num_updates - s
        g = tl.load(cols + (t - 1) * num_keys, mask=valid_j, other=float("-inf"))
        if OF_ROWS or s > 0:
            f = tl.load(rows + t * num_queries, mask=valid_i, other=float("-inf"))
            # [BLOCK_N, BLOCK_M]
            R = tl.exp2(log2_plan(S, to_log2, g[None, :], (f - log_w)[:, None])) * df[:, None]
            dS -= R
            dg -= tl.sum(R, axis=0)
        f = tl.load(rows + (t - 1) * num_queries, mask=valid_i, other=float("-inf"))
        # [BLOCK_N, BLOCK_M]
        C = tl.exp2(log2_plan(S, to_log2, (g - log_u)[None, :], f[:, None])) * dg[None, :]
        dS -= C
        df = -tl.sum(C, axis=1)
        dg = tl.zeros([BLOCK_M], tl.float32)
    dS *= slope
    # [BLOCK_N, BLOCK_D]
    dq = product(dS, k_tile, OPERAND, PRECISION)
    # [BLOCK_M, BLOCK_D]
    dk = product(tl.trans(dS), q_tile, OPERAND, PRECISION)
    if OF_ROWS:
        grad_queries += head * num_queries * D
        dq += load_tile(grad_queries, c, c < num_queries, D, D, BLOCK_D)
    if OF_COLS:
        grad_keys += head * num_keys * D
        dk += load_tile(grad_keys, d, d < num_keys, D, D, BLOCK_D)
    add_rows(grad_q + b * gq_b + h * gq_h, i, valid_i, gq_n, dq, D, BLOCK_D)
    add_rows(grad_k + b * gk_b + h * gk_h, j, valid_j, gk_n, dk, D, BLOCK_D)


def launch(
    p: Launch,
    subset: Subset,
    key_subset: Subset,
    duals: SubsetDuals,
    grads: tuple[Tensor, Tensor],
    *,
    of_rows: tuple[Tensor, Tensor] | None,
    of_cols: tuple[Tensor, Tensor] | None,
) -> None:
    """Add the gradients of the subset's queries and keys to `grads`, those of q and k.

    `of_rows` are the gradients of the last f' and of the subset's queries, `of_cols` those of the
    last g' and of its keys; None without any.
    """
    num_queries, num_keys = subset.tokens.shape[2], key_subset.tokens.shape[2]
    gradient_kernel[(p.programs,)](
        p.q, p.k, subset.tokens, key_subset.tokens, subset.weight, key_subset.weight, p.padding,
        *duals, *(of_rows or (None, None)), *(of_cols or (None, None)), *grads,
        *strides(p.q, p.k, *grads),
        *subset_strides(subset, key_subset),
        p.heads, p.n, p.m, num_queries, num_keys, p.num_iters - 1,
        p.to_log2, p.log2_ratio, p.slope,
        **p.logits, BLOCK_N=block(num_queries), BLOCK_M=block(num_keys),
        BLOCK_PADDING=min(block(p.n), 1024),
        OF_ROWS=of_rows is not None, OF_COLS=of_cols is not None,
        num_warps=warps(p, max(num_queries, num_keys)), **EVERY_LAUNCH,
    )  # fmt: skip
