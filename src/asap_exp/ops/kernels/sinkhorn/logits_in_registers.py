"""Finite-T Sinkhorn attention with a head's whole logit tile in registers, forward and backward.

There is one program per head. Limits: `TOKENS` on either side. Forward, E = exp(S + f + g) is
computed once, after the first update; the other updates work only on scalings, which start at 1:

    b_j = (n / m) / sum_i E_ij a_i,   a_i = 1 / sum_j E_ij b_j;   f^t = f + log a, g^t = g + log b.

A scaling that has moved far is folded into f and g, and E is recomputed, so that the sums neither
overflow nor vanish, however large the logits: after one full update, every sum of A^t = E a b lies
between 1/n and n (or 1/m and m), because the previous step normalised the other side.

An update relaxed by w takes a to a (a' / a)^w, where a' is the result of a plain update.

Backward, with X = S + g^T, dX = A^T (dO v' - <dO, out>), and the adjoints

    dg^T = sum_i dX_ij,   df^t_i = -sum_j A^t_ij w^t_j,   dg^t_j = -sum_i A^t_ij df^t_i,
    w^t_j = dg^(t+1)_j / C^t_j   (w^0 = dg^1, with A^0 = exp(S + f^0 + g^1) m / n),

    dS = dX - sum_(t < T) A^t_ij (w^t_j + df^t_i)   (without df at t = 0).

Letters: see `kernels.tiles`.
"""

import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.launch import Duals, Launch, strides
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    IN_LOG2,
    block,
    far_from_one,
    fma_bias,
    load_tile,
    log2_plan,
    log2_scaling,
    product,
    store_tile,
    valid_tokens,
)

TOKENS, WIDE_FLOAT32_TOKENS = 128, 64
"""Longest side whose logits fit in registers; the second is for float32 with over 64 channels."""

SCALING_SPREAD = tl.constexpr(16.0)
"""Switch from log-domain updates to scalings once the moves of one update spread by at most this,
in units of log 2: exp2(16) is safe in float32.
"""


def refusal(call: Call) -> str | None:
    """Return why this kernel does not take the call, forward or backward, or None if it does."""
    wide = call.widest > 64 and call.has_float32
    most = WIDE_FLOAT32_TOKENS if wide else TOKENS
    if call.longest > most:
        kind = " of float32 with more than 64 channels" if wide else ""
        return f"takes up to {most} tokens{kind}, got {call.longest}"
    return None


def relaxed_refusal(call: Call) -> str | None:
    """Return why this kernel does not run relaxed updates and the closure, or None if it does."""
    if call.gradient:
        return "has no gradient of relaxed updates"
    return refusal(call)


@triton.jit
def store_dual(place, scaling, base, exists, valid):
    """Store the dual base + log2(scaling), and return the scaling of the stored, rounded dual.

    The backward pass reads the rounded duals, so the updates continue from those.
    """
    dual = base + tl.log2(scaling)
    tl.store(place, tl.where(valid, dual, 0.0), mask=exists)
    return tl.where(valid, tl.exp2(dual - base), 0.0)


@triton.jit
def relaxed_update(S, f, relaxation, valid_i, valid_j, to_log2, log2_ratio):
    """Return f + relaxation (F(f) - f), where F is a plain update; f is -inf where not valid."""
    g = column_dual(S, f, valid_j, to_log2, log2_ratio)
    X = fma_bias(S, to_log2, g[None, :])
    highest = tl.max(X, axis=1)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    updated = -highest - tl.log2(tl.sum(tl.exp2(X - highest[:, None]), axis=1))
    return tl.where(valid_i, f + relaxation * (updated - f), float("-inf"))


@triton.jit
def column_dual(S, f, valid_j, to_log2, log2_ratio):
    """Return g = log2_ratio - LSE_i(S + f), -inf where not valid."""
    E = fma_bias(S, to_log2, f[:, None])
    highest = tl.max(E, axis=0)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    E = tl.exp2(E - highest[None, :])
    return tl.where(valid_j, log2_ratio - highest - tl.log2(tl.sum(E, axis=0)), float("-inf"))


# fmt: off
@triton.jit
def plan(
    S, f, q, k, q_n, k_n, i, j, valid_i, valid_j, rows, cols,
    n, m, num_iters, to_log2, log2_ratio, relaxation,
    D: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    SAVE: tl.constexpr, RELAXED: tl.constexpr,
):
    # fmt: on
    """Return the plan after `num_iters` updates from f, `[len(i), len(j)]`.

    f is -inf where not valid. With RELAXED, all updates but the last are relaxed. S holds the
    products of q and k. `q` and `k` point to the head's first row; with SAVE, `rows` and `cols`
    point to f^0_i and g^1_j.
    """
    ratio = tl.exp2(log2_ratio)
    if RELAXED:
        # Scalings far from 1 lose sums: update in logarithms until the moves are small.
        far = num_iters > 1
        while far:
            updated = relaxed_update(S, f, relaxation, valid_i, valid_j, to_log2, log2_ratio)
            # The moves of a plain update, against which relaxed updates are measured below.
            moves = tl.where(valid_i, (updated - f) / relaxation, 0.0)
            # [BLOCK_N]
            f = updated
            num_iters -= 1
            far = (num_iters > 1) & (tl.max(moves) - tl.min(moves) > SCALING_SPREAD)
    # [BLOCK_M]
    g = column_dual(S, f, valid_j, to_log2, log2_ratio)
    highest = tl.max(fma_bias(S, to_log2, g[None, :]), axis=1)
    start = f
    f = tl.where(highest == float("-inf"), 0.0, -highest)
    # [BLOCK_N, BLOCK_M]
    E = tl.exp2(log2_plan(S, to_log2, g[None, :], f[:, None]))
    # [BLOCK_N]
    row_sum = tl.sum(E, axis=1)
    a = tl.where(valid_i, 1.0 / row_sum, 0.0)
    b = tl.where(valid_j, 1.0, 0.0)
    if RELAXED:  # noqa: SIM102 - decided when the kernel is compiled
        if num_iters > 1:
            move = tl.where(valid_i, f + log2_scaling(a, valid_i) - start, 0.0)
            further = (relaxation - 1.0) * move
            a *= tl.exp2(further - tl.max(further))  # adding a constant changes no plan
    if SAVE:
        b = store_dual(cols, b, g, j < m, valid_j)
    for t in range(1, num_iters):
        # 4 updates change a scaling by at most (n m)^4.
        if t % 4 == 1:  # noqa: SIM102 - the inner test costs a reduction
            if far_from_one(a, valid_i) | far_from_one(b, valid_j):
                f += log2_scaling(a, valid_i)
                g += log2_scaling(b, valid_j)
                # Recompute the logits: keeping them over the loop would cost half its registers.
                # [BLOCK_N, BLOCK_D]
                q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
                # [BLOCK_M, BLOCK_D]
                k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
                # [BLOCK_N, BLOCK_M]
                S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
                E = tl.exp2(log2_plan(S, to_log2, g[None, :], f[:, None]))
                a = tl.where(valid_i, 1.0, 0.0)
                b = tl.where(valid_j, 1.0, 0.0)
        if SAVE:
            a = store_dual(rows + t * n, a, f, i < n, valid_i)
        b = tl.where(valid_j, ratio / tl.sum(E * a[:, None], axis=0), 0.0)
        if SAVE:
            b = store_dual(cols + t * m, b, g, j < m, valid_j)
        updated = tl.where(valid_i, 1.0 / tl.sum(E * b[None, :], axis=1), 0.0)
        if RELAXED:  # noqa: SIM102
            if t + 1 < num_iters:
                move = log2_scaling(updated, valid_i) - log2_scaling(a, valid_i)
                further = (relaxation - 1.0) * move
                updated *= tl.exp2(further - tl.max(further))
        a = updated
    if SAVE:
        a = store_dual(rows + num_iters * n, a, f, i < n, valid_i)
    return E * (b[None, :] * a[:, None])


# fmt: off
@triton.jit
def forward_kernel(
    q, k, v, start, padding, out, rows, cols,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    heads, n, m, num_iters, to_log2, log2_ratio, relaxation,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr, SAVE: tl.constexpr, RELAXED: tl.constexpr,
):
    # fmt: on
    """Compute the output of a head; one program per head.

    With SAVE, `rows` [.., T + 1, n] receives f^0 .. f^T and `cols` [.., T, m] receives g^1 .. g^T.
    """
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
    if SAVE:
        rows += head * (num_iters + 1) * n + i
        cols += head * num_iters * m + j

    # [BLOCK_N]
    f = tl.zeros([BLOCK_N], tl.float32)
    if HAS_START:
        f += tl.load(start + head * n + i, mask=valid_i, other=0.0) * IN_LOG2
    if SAVE:
        tl.store(rows, f, mask=i < n)
    f = tl.where(valid_i, f, float("-inf"))
    # [BLOCK_N, BLOCK_M]
    A = plan(
        S, f, q, k, q_n, k_n, i, j, valid_i, valid_j, rows, cols,
        n, m, num_iters, to_log2, log2_ratio, relaxation,
        D, BLOCK_D, OPERAND, PRECISION, SAVE, RELAXED,
    )
    # [BLOCK_M, BLOCK_V]
    v_tile = load_tile(v + sample * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
    # [BLOCK_N, BLOCK_V]
    values = product(A, v_tile, V_OPERAND, PRECISION)
    store_tile(out + sample * out_b + h * out_h, i, i < n, out_n, values, V_WIDTH, BLOCK_V)


# fmt: off
@triton.jit
def backward_kernel(
    q, k, v, grad_out, padding, rows, cols, grad_q, grad_k, grad_v, grad_start,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, go_b, go_h, go_n,
    gq_b, gq_h, gq_n, gk_b, gk_h, gk_n, gv_b, gv_h, gv_n,
    heads, n, m, num_iters, to_log2, log2_ratio, slope,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Compute the gradients of a head; one program per head.

    `slope` is scale / eps; `rows` and `cols` are the duals of the forward pass.
    """
    head = tl.program_id(0).to(tl.int64)
    b, h = head // heads, head % heads
    i, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    valid_j = valid_tokens(padding, b, j, m, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + b * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    # [BLOCK_M, BLOCK_D]
    k_tile = load_tile(k + b * k_b + h * k_h, j, valid_j, k_n, D, BLOCK_D)
    # [BLOCK_N, BLOCK_M]
    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
    rows += head * (num_iters + 1) * n + i
    cols += head * num_iters * m + j

    # [BLOCK_M]
    g = tl.load(cols + (num_iters - 1) * m, mask=valid_j, other=float("-inf"))
    # [BLOCK_N]
    f = tl.load(rows + num_iters * n, mask=valid_i, other=float("-inf"))
    # [BLOCK_N, BLOCK_M]
    A = tl.exp2(log2_plan(S, to_log2, g[None, :], f[:, None]))
    # [BLOCK_N, BLOCK_V]
    do_tile = load_tile(grad_out + b * go_b + h * go_h, i, valid_i, go_n, V_WIDTH, BLOCK_V)
    # [BLOCK_M, BLOCK_V]
    dv = product(tl.trans(A), do_tile, V_OPERAND, PRECISION)
    store_tile(grad_v + b * gv_b + h * gv_h, j, j < m, gv_n, dv, V_WIDTH, BLOCK_V)
    # [BLOCK_M, BLOCK_V]
    v_tile = load_tile(v + b * v_b + h * v_h, j, valid_j, v_n, V_WIDTH, BLOCK_V)
    # [BLOCK_N, BLOCK_M]
    dA = product(do_tile, tl.trans(v_tile), V_OPERAND, PRECISION)
    dS = A * (dA - tl.sum(A * dA, axis=1)[:, None])
    # [BLOCK_M]
    dg = tl.sum(dS, axis=0)
    for s in range(1, num_iters):
        t = num_iters - s
        f = tl.load(rows + t * n, mask=valid_i, other=float("-inf"))
        g_next = g
        g = tl.load(cols + (t - 1) * m, mask=valid_j, other=float("-inf"))
        w = tl.where(valid_j, dg * tl.exp2(g_next - g - log2_ratio), 0.0)
        A = tl.exp2(log2_plan(S, to_log2, g[None, :], f[:, None]))
        # [BLOCK_N]
        df = -tl.sum(A * w[None, :], axis=1)
        dg = -tl.sum(A * df[:, None], axis=0)
        dS -= A * (w[None, :] + df[:, None])
    f = tl.load(rows, mask=valid_i, other=float("-inf"))
    f -= log2_ratio
    A = tl.exp2(log2_plan(S, to_log2, g[None, :], f[:, None])) * dg[None, :]
    tl.store(grad_start + head * n + i, -tl.sum(A, axis=1), mask=i < n)
    dS = (dS - A) * slope
    # [BLOCK_N, BLOCK_D]
    dq = product(dS, k_tile, OPERAND, PRECISION)
    store_tile(grad_q + b * gq_b + h * gq_h, i, i < n, gq_n, dq, D, BLOCK_D)
    # [BLOCK_M, BLOCK_D]
    dk = product(tl.trans(dS), q_tile, OPERAND, PRECISION)
    store_tile(grad_k + b * gk_b + h * gk_h, j, j < m, gk_n, dk, D, BLOCK_D)


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None) -> None:
    """Write `out`, and all duals if they are kept; `start` is f^0, or None for zeros."""
    _launch(p, start, out, duals, None)


def launch_relaxed(p: Launch, out: Tensor, relaxation: float) -> None:
    """Write `out` after `num_iters` - 1 relaxed updates from 0 and the closure."""
    _launch(p, None, out, None, relaxation)


def _launch(
    p: Launch,
    start: Tensor | None,
    out: Tensor,
    duals: Duals | None,
    relaxation: float | None,
) -> None:
    if relaxation is not None and p.num_iters > 1:  # more code, and more work in logarithms
        warps = p.register_warps(4, 8)
    else:
        warps, relaxation = p.register_warps(2 if p.one_wave else 1, 8), None
    rows, cols = (None, None) if duals is None else duals
    forward_kernel[(p.programs,)](
        p.q, p.k, p.v, start, p.padding, out, rows, cols, *strides(p.q, p.k, p.v, out),
        p.heads, p.n, p.m, p.num_iters, p.to_log2, p.log2_ratio, relaxation or 1.0,
        **p.values, BLOCK_N=block(p.n), BLOCK_M=block(p.m),
        HAS_START=start is not None, SAVE=duals is not None, RELAXED=relaxation is not None,
        num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


def launch_backward(
    p: Launch, grad_out: Tensor, duals: Duals, grads: tuple[Tensor, ...]
) -> None:
    """Write the gradients of q, k, v and f^0."""
    backward_kernel[(p.programs,)](
        p.q, p.k, p.v, grad_out, p.padding, *duals, *grads,
        *strides(p.q, p.k, p.v, grad_out, *grads[:3]),
        p.heads, p.n, p.m, p.num_iters, p.to_log2, p.log2_ratio, p.slope,
        **p.values, BLOCK_N=block(p.n), BLOCK_M=block(p.m),
        num_warps=p.register_warps(2, 8), **EVERY_LAUNCH,
    )  # fmt: skip
