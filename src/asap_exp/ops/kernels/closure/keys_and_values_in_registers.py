"""The closure of a head in one program, its keys and values on chip: for bfloat16, no gradient.

The queries pass by twice, block by block: first for the column sums, which give the keys' dual,
then for the attention with it. The logits are computed anew: kept, those of one head would fill a
processor, where now the programs of several hide each other's waiting.

Keys and values lie in tiles, tuples of them, which take turns in the registers. In the first pass
keys are rows, so that a thread adds up what it holds. As in `folded` no running maximum is kept:
column sums are shifted by the largest logit that the first queries have, row sums by f. Where that
was far off, the head makes its sums again with the true maxima.
"""

# Triton knows no unpacking into a tuple: those of tiles grow by concatenation, from empty ones.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.launch import Duals, Launch, strides
from asap_exp.ops.kernels.sinkhorn import logits_in_registers, tiled_bf16
from asap_exp.ops.kernels.sinkhorn.tiled_bf16 import lost, partial_sums, row_sums
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    IN_LOG2,
    block,
    fma_bias,
    load_tile,
    log2_plan,
    product,
    store_tile,
    valid_tokens,
)

TOKENS, CHANNELS = 256, 64
"""Longest side, and widest head, whose keys fit on chip."""

BLOCK_QUERIES = 64
"""Queries that meet all keys of a head at a time."""

KEY_TILE = 64
"""Keys that are in the registers at a time."""

MAX_REGISTERS = 168
"""`maxnreg` of the closure kernel: three programs per multiprocessor."""


def refusal(call: Call) -> str | None:
    """Why this kernel does not take the call; None if it does."""
    if call.num_iters > 1:
        return f"makes one update, got num_iters={call.num_iters}"
    if call.value_dim > CHANNELS:
        return f"takes values of up to {CHANNELS} channels, got {call.value_dim}"
    return tiled_bf16.refusal(call) or key_refusal(call)


def key_refusal(call: Call) -> str | None:
    """Why the keys of a head do not fit on chip, or the GPU is not one that was tuned for."""
    if call.longest > TOKENS:
        return f"takes up to {TOKENS} tokens, got {call.longest}"
    if call.head_dim > CHANNELS:
        return f"takes heads of up to {CHANNELS} channels, got {call.head_dim}"
    if call.capability is not None and call.capability[0] != 9:
        found = "{}.{}".format(*call.capability)
        return f"counts on the wgmma of Hopper (compute capability 9.0), got {found}"
    return None


def slower(call: Call) -> str | None:
    """Why another route is faster; None if this one is."""
    most = logits_in_registers.TOKENS
    if call.longest <= most:
        return f"up to {most} tokens are faster with their logits in registers"
    return None


# fmt: off
@triton.jit
def store_dual(
    rows, start, padding, sample, n,
    BLOCK: tl.constexpr, HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """f in units of log 2, -inf where not valid, in `rows` `[BLOCK]`."""
    i = tl.arange(0, BLOCK)
    valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
    f = tl.where(valid, 0.0, float("-inf"))
    if HAS_START:
        f += tl.load(start + i, mask=valid, other=0.0) * IN_LOG2
    tl.store(rows + i, f)


# fmt: off
@triton.jit
def column_maxima(
    keys, q, rows, padding, sample, q_n, n, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """max_i(S_ij + f_i) of each tile of keys, 0 where there is none."""
    maxima = ()
    for t in tl.static_range(len(keys)):
        maxima = maxima + (tl.full([keys[t].shape[0]], float("-inf"), tl.float32),)
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        f = tl.load(rows + i)
        higher = ()
        for t in tl.static_range(len(keys)):
            S = product(keys[t], tl.trans(q_tile), OPERAND, PRECISION)
            X = fma_bias(S, to_log2, f[None, :])
            higher = higher + (tl.maximum(maxima[t], tl.max(X, 1)),)
        maxima = higher
    found = ()
    for t in tl.static_range(len(keys)):
        found = found + (finite_maximum(maxima[t]),)
    return found


# fmt: off
@triton.jit
def first_sums(
    keys, q, rows, padding, sample, q_n, n, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """max_i(S_ij + f_i) and sum_i exp(S_ij + f_i - maximum_j) of the first block of queries."""
    i = tl.arange(0, BLOCK_N)
    valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
    q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
    f = tl.load(rows + i)
    maxima, totals = (), ()
    for t in tl.static_range(len(keys)):
        S = product(keys[t], tl.trans(q_tile), OPERAND, PRECISION)
        X = fma_bias(S, to_log2, f[None, :])
        highest = finite_maximum(tl.max(X, 1))
        E = tl.exp2(X - highest[:, None])
        maxima = maxima + (highest,)
        totals = totals + (partial_sums(E, keys[t].shape[0], BLOCK_N),)
    return maxima, totals


@triton.jit
def finite_maximum(maximum):
    """0 where there was nothing to take it of."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


# fmt: off
@triton.jit
def column_sums(
    keys, maxima, totals, q, rows, padding, sample, q_n, begin, n, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """`totals` of each tile of keys, and sum_i exp(S_ij + f_i - maximum_j) from `begin` on."""
    for first in range(begin, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        f = tl.load(rows + i)
        larger = ()
        for t in tl.static_range(len(keys)):
            S = product(keys[t], tl.trans(q_tile), OPERAND, PRECISION)
            E = tl.exp2(log2_plan(S, to_log2, f[None, :], -maxima[t][:, None]))
            larger = larger + (totals[t] + partial_sums(E, keys[t].shape[0], BLOCK_N),)
        totals = larger
    sums = ()
    for t in tl.static_range(len(keys)):
        sums = sums + (tl.sum(totals[t], 1),)
    return sums


# fmt: off
@triton.jit
def store_columns(
    cols, maxima, sums, padding, sample, m, log2_ratio,
    TILE: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """g_j, -inf where not valid, in `cols`; whether sums were lost."""
    worst = tl.zeros([TILE], tl.int32)
    for t in tl.static_range(len(sums)):
        j = t * TILE + tl.arange(0, TILE)
        valid = valid_tokens(padding, sample, j, m, HAS_PADDING)
        worst |= lost(sums[t], valid)
        g = log2_ratio - maxima[t] - tl.log2(sums[t])
        tl.store(cols + j, tl.where(valid, g, float("-inf")))
    return tl.max(worst) > 0


# fmt: off
@triton.jit
def column_dual(
    cols, keys, q, rows, padding, sample, q_n, n, m, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """g_j = log2_ratio - LSE_i(S + f), -inf where not valid, in `cols`."""
    TILE: tl.constexpr = keys[0].shape[0]
    maxima, totals = first_sums(
        keys, q, rows, padding, sample, q_n, n, to_log2,
        D, BLOCK_D, BLOCK_N, OPERAND, PRECISION, HAS_PADDING,
    )  # fmt: skip
    sums = column_sums(
        keys, maxima, totals, q, rows, padding, sample, q_n, BLOCK_N, n, to_log2,
        D, BLOCK_D, BLOCK_N, OPERAND, PRECISION, HAS_PADDING,
    )  # fmt: skip
    again = store_columns(cols, maxima, sums, padding, sample, m, log2_ratio, TILE, HAS_PADDING)
    if again:
        maxima = column_maxima(
            keys, q, rows, padding, sample, q_n, n, to_log2,
            D, BLOCK_D, BLOCK_N, OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip
        totals = ()
        for _ in tl.static_range(len(keys)):
            totals = totals + (tl.zeros([TILE, 4], tl.float32),)
        sums = column_sums(
            keys, maxima, totals, q, rows, padding, sample, q_n, 0, n, to_log2,
            D, BLOCK_D, BLOCK_N, OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip
        store_columns(cols, maxima, sums, padding, sample, m, log2_ratio, TILE, HAS_PADDING)


# fmt: off
@triton.jit
def column_step_kernel(
    q, k, start, padding, rows, cols, q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, m, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """The first half of `closure_kernel`: g in `cols`, -inf where not valid."""
    head = tl.program_id(0).to(tl.int64)
    sample, h = head // heads, head % heads
    q += sample * q_b + h * q_h
    k += sample * k_b + h * k_h
    rows += head * ROWS
    if HAS_START:
        start += head * n
    keys = ()
    for t in tl.static_range(TILES):
        j = t * TILE + tl.arange(0, TILE)
        valid = valid_tokens(padding, sample, j, m, HAS_PADDING)
        keys = keys + (load_tile(k, j, valid, k_n, D, BLOCK_D),)
    store_dual(rows, start, padding, sample, n, ROWS, HAS_START, HAS_PADDING)
    tl.debug_barrier()
    column_dual(
        cols + head * TILES * TILE, keys, q, rows, padding, sample, q_n, n, m, to_log2, log2_ratio,
        D, BLOCK_D, BLOCK_N, OPERAND, PRECISION, HAS_PADDING,
    )  # fmt: skip


# fmt: off
@triton.jit
def store_maxima(
    rows, cols, keys, q, padding, sample, q_n, n, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """-max_j(S_ij + g_j), -inf where not valid, in `rows`."""
    TILE: tl.constexpr = keys[0].shape[0]
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
        for t in tl.static_range(len(keys)):
            S = product(q_tile, tl.trans(keys[t]), OPERAND, PRECISION)
            g = tl.load(cols + t * TILE + tl.arange(0, TILE))
            highest = tl.maximum(highest, tl.max(fma_bias(S, to_log2, g[None, :]), 1))
        tl.store(rows + i, tl.where(valid, -highest, float("-inf")))


# fmt: off
@triton.jit
def attention(
    out, rows, cols, keys, values, q, padding, sample, q_n, out_n, n, to_log2,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """softmax_j(S + g) v in `out`; whether sums, shifted by what `rows` says, were lost."""
    TILE: tl.constexpr = keys[0].shape[0]
    worst = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        shift = tl.load(rows + i)
        sums = tl.zeros([BLOCK_N, 16], tl.float32)
        weighted = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        for t in tl.static_range(len(keys)):
            S = product(q_tile, tl.trans(keys[t]), OPERAND, PRECISION)
            g = tl.load(cols + t * TILE + tl.arange(0, TILE))
            E = tl.exp2(log2_plan(S, to_log2, g[None, :], shift[:, None]))
            sums += row_sums(E, V_OPERAND)
            weighted += product(E, values[t], V_OPERAND, PRECISION)
        total = tl.max(sums, 1)
        worst |= lost(total, valid)
        averages = weighted * tl.where(valid, 1.0 / total, 0.0)[:, None]
        store_tile(out, i, i < n, out_n, averages, V_WIDTH, BLOCK_V)
    return tl.max(worst) > 0


# fmt: off
@triton.jit
def closure_kernel(
    q, k, v, start, padding, out, rows, cols,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    heads, n, m, to_log2, log2_ratio,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_START: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """out = softmax_j(S + g) v, g = log2_ratio - LSE_i(S + start), of at most TILES TILE keys.

    `start` is in natural units. Room for the duals of a head: `rows` `[.., ROWS]`, `cols`
    `[.., TILES TILE]`.
    """
    head = tl.program_id(0).to(tl.int64)
    sample, h = head // heads, head % heads
    q += sample * q_b + h * q_h
    k += sample * k_b + h * k_h
    v += sample * v_b + h * v_h
    out += sample * out_b + h * out_h
    rows += head * ROWS
    cols += head * TILES * TILE
    if HAS_START:
        start += head * n
    keys, values = (), ()
    for t in tl.static_range(TILES):
        j = t * TILE + tl.arange(0, TILE)
        valid = valid_tokens(padding, sample, j, m, HAS_PADDING)
        keys = keys + (load_tile(k, j, valid, k_n, D, BLOCK_D),)
        values = values + (load_tile(v, j, valid, v_n, V_WIDTH, BLOCK_V),)
    store_dual(rows, start, padding, sample, n, ROWS, HAS_START, HAS_PADDING)
    tl.debug_barrier()  # what is read from here on other threads wrote
    column_dual(
        cols, keys, q, rows, padding, sample, q_n, n, m, to_log2, log2_ratio,
        D, BLOCK_D, BLOCK_N, OPERAND, PRECISION, HAS_PADDING,
    )  # fmt: skip
    tl.debug_barrier()
    again = attention(
        out, rows, cols, keys, values, q, padding, sample, q_n, out_n, n, to_log2,
        D, V_WIDTH, BLOCK_D, BLOCK_V, BLOCK_N, OPERAND, V_OPERAND, PRECISION, HAS_PADDING,
    )  # fmt: skip
    if again:
        store_maxima(
            rows, cols, keys, q, padding, sample, q_n, n, to_log2,
            D, BLOCK_D, BLOCK_N, OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip
        tl.debug_barrier()
        attention(
            out, rows, cols, keys, values, q, padding, sample, q_n, out_n, n, to_log2,
            D, V_WIDTH, BLOCK_D, BLOCK_V, BLOCK_N, OPERAND, V_OPERAND, PRECISION, HAS_PADDING,
        )  # fmt: skip


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None = None) -> None:
    """Writes `out`; `start` is f^0, None for zeros. No duals are kept."""
    rows, cols, tiles = _room(p)
    closure_kernel[(p.programs,)](
        p.q, p.k, p.v, start, p.padding, out, rows, cols, *strides(p.q, p.k, p.v, out),
        p.heads, p.n, p.m, p.to_log2, p.log2_ratio, **p.values, **tiles,
        HAS_START=start is not None, num_warps=4, num_stages=1, maxnreg=MAX_REGISTERS,
        **EVERY_LAUNCH,
    )  # fmt: skip


def column_step(p: Launch, start: Tensor | None) -> Tensor:
    """g^1 in units of log 2, -inf where not valid, one row per head of at least `m` places."""
    rows, cols, tiles = _room(p)
    column_step_kernel[(p.programs,)](
        p.q, p.k, start, p.padding, rows, cols, *strides(p.q, p.k),
        p.heads, p.n, p.m, p.to_log2, p.log2_ratio, **p.logits, **tiles,
        HAS_START=start is not None, num_warps=4, num_stages=1, **EVERY_LAUNCH,
    )  # fmt: skip
    return cols


def _room(p: Launch) -> tuple[Tensor, Tensor, dict[str, object]]:
    """Room for the duals of queries and of keys, and the constants of both kernels."""
    n, tiles = block(p.n, BLOCK_QUERIES), triton.cdiv(p.m, KEY_TILE)
    rows = p.q.new_empty(p.programs, n, dtype=torch.float32)
    cols = p.q.new_empty(p.programs, tiles * KEY_TILE, dtype=torch.float32)
    return rows, cols, {"ROWS": n, "BLOCK_N": BLOCK_QUERIES, "TILES": tiles, "TILE": KEY_TILE}
