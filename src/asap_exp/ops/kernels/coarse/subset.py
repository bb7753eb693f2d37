"""The duals of a subset of tokens in one launch, one program per head.

As in `sinkhorn.logits_in_registers`, E = exp(S + f + g) is computed once and the updates work on
scalings. Here token c stands for w_c tokens, and the duals hold log w: f' = f + log w and
g' = g + log w, so that

    b_j = (n / m) w_j / sum_i E_ij a_i,   a_i = w_i / sum_j E_ij b_j;   f'^t = f' + log a, ...

from f'^0 = log w. The weights sum to the valid tokens; a token of weight 0 has a dual of -inf and
is in no sum. Limit: `TOKENS` on either side. Letters: see `kernels.tiles`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call, device_of, one_wave
from asap_exp.ops.kernels.launch import Launch, strides
from asap_exp.ops.kernels.sinkhorn.logits_in_registers import (
    TOKENS,
    WIDE_FLOAT32_TOKENS,
    column_dual,
)
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    block,
    far_from_one,
    fma_bias,
    load_tile,
    log2_plan,
    log2_scaling,
    product,
)
from asap_exp.ops.subsets import Subset


class SubsetDuals(NamedTuple):
    """Duals of a subset with the logarithms of its weights, in units of log 2, -inf where absent.

    `rows` `[B, H, U + 1, C]` are f'^0 .. f'^U, `cols` `[B, H, U, C]` are g'^1 .. g'^U of U updates,
    or each the last alone if no others are kept.
    """

    rows: Tensor
    cols: Tensor


def refusal(call: Call) -> str | None:
    """Return why the kernels do not take the call's subset, or None if they do."""
    most, kind = TOKENS, ""
    if call.dtype == torch.float32 and (call.head_dim > 64 or call.gradient):
        most = WIDE_FLOAT32_TOKENS
        kind = " of float32 with " + ("a gradient" if call.gradient else "more than 64 channels")
    if call.subset > most:
        return f"takes subsets of up to {most} tokens{kind}, got {call.subset}"
    return None


# fmt: off
@triton.jit
def chosen(
    tokens, weight, padding, sample, num_tokens, c, count,
    HAS_PADDING: tl.constexpr, BLOCK: tl.constexpr,
):
    # fmt: on
    """Return the indices of the tokens `c` of a subset and log2 of their weights.

    The weights are scaled to sum to the valid tokens; if none is left, all weigh the same.
    """
    inside = c < count
    index = tl.load(tokens + c, mask=inside, other=0)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    valid = num_tokens * 1.0
    if HAS_PADDING:
        padding += sample * num_tokens
        w = tl.where(tl.load(padding + index, mask=inside, other=1) == 0, w, 0.0)
        number = tl.zeros([BLOCK], tl.int32)
        for first in range(0, num_tokens, BLOCK):
            i = first + tl.arange(0, BLOCK)
            number += (tl.load(padding + i, mask=i < num_tokens, other=1) == 0).to(tl.int32)
        valid = tl.sum(number).to(tl.float32)
    w = tl.where(tl.sum(w) > 0.0, w, tl.where(inside, 1.0, 0.0))
    w *= valid / tl.sum(w)
    return index, tl.where(w > 0.0, tl.log2(tl.where(w > 0.0, w, 1.0)), float("-inf"))


@triton.jit
def store_dual(place, scaling, base, exists, valid):
    """Store base + log2(scaling), and return the scaling of the stored, rounded dual.

    The backward pass reads the rounded duals, so the updates continue from those.
    """
    dual = tl.where(valid, base + tl.log2(tl.where(valid, scaling, 1.0)), float("-inf"))
    tl.store(place, dual, mask=exists)
    return tl.where(valid, tl.exp2(dual - base), 0.0)


@triton.jit
def column_sums(E, E_t, a, TWICE: tl.constexpr):
    """Return sum_i E_ij a_i, with TWICE from the transposed E."""
    if TWICE:
        return tl.sum(E_t * a[None, :], axis=1)
    return tl.sum(E * a[:, None], axis=0)


# fmt: off
@triton.jit
def updates_kernel(
    q, k, q_tokens, k_tokens, q_weight, k_weight, padding, rows, cols,
    q_b, q_h, q_n, k_b, k_h, k_n, qt_b, qt_h, kt_b, kt_h, qw_b, qw_h, kw_b, kw_h,
    heads, n, m, num_queries, num_keys, num_updates, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, BLOCK_PADDING: tl.constexpr, SAVE: tl.constexpr,
    CHECKED: tl.constexpr, TWICE: tl.constexpr,
):
    # fmt: on
    """Store the duals of a head's subset after `num_updates` updates; with SAVE, all of them.

    Every CHECKED updates, scalings that have moved far are folded into the duals. With TWICE a
    second, transposed E is kept in registers: sums down the columns of a tile, which are spread
    over all threads, take several times as many instructions as those along its rows.
    """
    head = tl.program_id(0).to(tl.int64)
    b, h = head // heads, head % heads
    c, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    q_tokens += b * qt_b + h * qt_h
    k_tokens += b * kt_b + h * kt_h
    q_weight += b * qw_b + h * qw_h
    k_weight += b * kw_b + h * kw_h
    i, log_w = chosen(
        q_tokens, q_weight, padding, b, n, c, num_queries, HAS_PADDING, BLOCK_PADDING
    )
    j, log_u = chosen(k_tokens, k_weight, padding, b, m, d, num_keys, HAS_PADDING, BLOCK_PADDING)
    valid_i, valid_j = log_w > float("-inf"), log_u > float("-inf")
    rows += head * (num_updates + 1 if SAVE else 1) * num_queries + c
    cols += head * (num_updates if SAVE else 1) * num_keys + d
    exists_i, exists_j = c < num_queries, d < num_keys
    if SAVE:
        tl.store(rows, log_w, mask=exists_i)
    if num_updates == 0:
        tl.store(rows, log_w, mask=exists_i)
    else:
        q += b * q_b + h * q_h
        k += b * k_b + h * k_h
        w = tl.where(valid_i, tl.exp2(log_w), 0.0)
        u = tl.where(valid_j, tl.exp2(log_u + log2_ratio), 0.0)
        # [BLOCK_N, BLOCK_D]
        q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
        # [BLOCK_M, BLOCK_D]
        k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
        # [BLOCK_N, BLOCK_M]
        S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
        # [BLOCK_M]
        g = column_dual(S, log_w, valid_j, to_log2, log2_ratio) + log_u
        # [BLOCK_N]
        highest = tl.max(fma_bias(S, to_log2, g[None, :]), axis=1)
        f = tl.where(highest == float("-inf"), 0.0, -highest)
        # [BLOCK_N, BLOCK_M]
        E = tl.exp2(log2_plan(S, to_log2, g[None, :], f[:, None]))
        E_t = E
        if TWICE:
            # [BLOCK_M, BLOCK_N]
            S = product(k_tile, tl.trans(q_tile), OPERAND, PRECISION)
            E_t = tl.exp2(log2_plan(S, to_log2, g[:, None], f[None, :]))
        g = tl.where(valid_j, g, 0.0)
        b_j = tl.where(valid_j, 1.0, 0.0)
        if SAVE:
            b_j = store_dual(cols, b_j, g, exists_j, valid_j)
        a_i = tl.where(valid_i, w / tl.sum(E * b_j[None, :], axis=1), 0.0)
        for t in range(1, num_updates):
            if t % CHECKED == 1:  # noqa: SIM102 - the inner test costs a reduction
                if far_from_one(a_i, valid_i) | far_from_one(b_j, valid_j):
                    f += log2_scaling(a_i, valid_i)
                    g += log2_scaling(b_j, valid_j)
                    # [BLOCK_N, BLOCK_D]
                    q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
                    # [BLOCK_M, BLOCK_D]
                    k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
                    # [BLOCK_N, BLOCK_M]
                    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
                    to_j = tl.where(valid_j, g, float("-inf"))
                    E = tl.exp2(log2_plan(S, to_log2, to_j[None, :], f[:, None]))
                    E_t = E
                    if TWICE:
                        # [BLOCK_M, BLOCK_N]
                        S = product(k_tile, tl.trans(q_tile), OPERAND, PRECISION)
                        E_t = tl.exp2(log2_plan(S, to_log2, to_j[:, None], f[None, :]))
                    a_i = tl.where(valid_i, 1.0, 0.0)
                    b_j = tl.where(valid_j, 1.0, 0.0)
            if SAVE:
                a_i = store_dual(rows + t * num_queries, a_i, f, exists_i, valid_i)
            b_j = tl.where(valid_j, u / column_sums(E, E_t, a_i, TWICE), 0.0)
            if SAVE:
                b_j = store_dual(cols + t * num_keys, b_j, g, exists_j, valid_j)
            a_i = tl.where(valid_i, w / tl.sum(E * b_j[None, :], axis=1), 0.0)
        if SAVE:
            store_dual(rows + num_updates * num_queries, a_i, f, exists_i, valid_i)
        else:
            store_dual(rows, a_i, f, exists_i, valid_i)
            store_dual(cols, b_j, g, exists_j, valid_j)


def launch(p: Launch, subset: Subset, key_subset: Subset, duals: SubsetDuals, save: bool) -> None:
    """Write the duals of a subset after `p.num_iters` - 1 updates; all of them with `save`."""
    num_queries, num_keys = subset.tokens.shape[2], key_subset.tokens.shape[2]
    updates_kernel[(p.programs,)](
        p.q, p.k, subset.tokens, key_subset.tokens, subset.weight, key_subset.weight, p.padding,
        *duals, *strides(p.q, p.k), *subset_strides(subset, key_subset),
        p.heads, p.n, p.m, num_queries, num_keys, p.num_iters - 1, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_N=block(num_queries), BLOCK_M=block(num_keys),
        BLOCK_PADDING=min(block(p.n), 1024), SAVE=save, CHECKED=checked(p),
        TWICE=not p.has_float32,
        num_warps=threads(p, max(num_queries, num_keys)), **EVERY_LAUNCH,
    )  # fmt: skip


def checked(p: Launch) -> int:
    """Return after how many updates scalings are to be checked.

    An update changes one by at most n m, so they stay below 2^(24 + 80).
    """
    return 4 if p.n * p.m <= 2**20 else 2


def subset_strides(*subsets: Subset) -> list[int]:
    """Return the batch and head strides of the tokens of all subsets, then of their weights.

    A stride is 0 where all samples or heads have the same subset.
    """
    parts = [s.tokens for s in subsets] + [s.weight for s in subsets]
    return [x.stride(i) if x.shape[i] > 1 else 0 for x in parts for i in (0, 1)]


def threads(p: Launch, count: int) -> int:
    """Return the warps of the updates of `count` tokens: enough to hold E twice."""
    return warps(p, count) if p.has_float32 else max(block(count) // 16, 1)


def warps(p: Launch, count: int) -> int:
    """Return the warps of a program that holds the logits of `count` tokens."""
    part = p._replace(q=p.q[:, :, :count], k=p.k[:, :, :count], v=p.q[:, :, :count])
    few = one_wave(p.programs, device_of(p.q))
    return part.register_warps(4 if few else 2, 8)
