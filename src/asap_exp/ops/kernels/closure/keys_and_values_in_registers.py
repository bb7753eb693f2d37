"""The closure of a head in one program, with keys and values in registers.

These kernels take bfloat16 without a gradient, on Hopper. The queries are streamed twice, block by
block: first for the column sums, which give the keys' dual, then for the attention with this dual.
The logits are recomputed: storing them for one head would fill a multiprocessor, where now several
programs hide each other's latency.

Keys and values are in tuples of tiles, which take turns in the registers. In the first pass, keys
are rows, so that each thread adds up its own entries. As in `tiled_bf16`, no running maximum is
kept: column sums are shifted by the largest logit of the first queries, row sums by f. If a shift
was far off, the head recomputes its sums with the true maxima. `column_step_kernel` is the first
half alone, for `plan_in_shared_memory`. Limits: `TOKENS` and `CHANNELS`. Letters: see
`kernels.tiles`; ROWS is n padded to whole blocks, and there are TILES tiles of TILE keys.
"""

# Triton cannot unpack into a tuple: tuples of tiles start empty and grow by concatenation.
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
"""Longest side and widest head that the kernels take."""

BLOCK_QUERIES = 64
"""Queries that meet all keys of a head at once."""

KEY_TILE = 64
"""Keys that are in the registers at once."""

MAX_REGISTERS = 168
"""`maxnreg` of the closure kernel: three programs per multiprocessor."""


def refusal(call: Call) -> str | None:
    """Return why this kernel does not take the call, or None if it does."""
    if call.num_iters > 1:
        return f"runs a single update, got num_iters={call.num_iters}"
    if call.value_dim > CHANNELS:
        return f"takes values of up to {CHANNELS} channels, got {call.value_dim}"
    return tiled_bf16.refusal(call) or key_refusal(call)


def key_refusal(call: Call) -> str | None:
    """Return why a head's keys do not fit or the GPU is not supported, or None if all is well."""
    if call.longest > TOKENS:
        return f"takes up to {TOKENS} tokens, got {call.longest}"
    if call.head_dim > CHANNELS:
        return f"takes heads of up to {CHANNELS} channels, got {call.head_dim}"
    if call.capability is not None and call.capability[0] != 9:
        found = "{}.{}".format(*call.capability)
        return f"needs the wgmma instructions of Hopper (compute capability 9.0), got {found}"
    return None


def slower(call: Call) -> str | None:
    """Return why another route is faster, or None if none is."""
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
    """Store f in units of log 2, -inf where not valid, into `rows` `[BLOCK]`."""
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
    """Return max_i(S_ij + f_i) for each tile of keys, 0 where no query is valid."""
    maxima = ()
    for t in tl.static_range(len(keys)):
        maxima = maxima + (tl.full([keys[t].shape[0]], float("-inf"), tl.float32),)
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        # [BLOCK_N, BLOCK_D]
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        f = tl.load(rows + i)
        higher = ()
        for t in tl.static_range(len(keys)):
            # [TILE, BLOCK_N]
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
    """Return maximum_j = max_i(S_ij + f_i) and sum_i exp(S_ij + f_i - maximum_j) of one block."""
    i = tl.arange(0, BLOCK_N)
    valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
    f = tl.load(rows + i)
    maxima, totals = (), ()
    for t in tl.static_range(len(keys)):
        # [TILE, BLOCK_N]
        S = product(keys[t], tl.trans(q_tile), OPERAND, PRECISION)
        X = fma_bias(S, to_log2, f[None, :])
        highest = finite_maximum(tl.max(X, 1))
        # [TILE, BLOCK_N]
        E = tl.exp2(X - highest[:, None])
        maxima = maxima + (highest,)
        totals = totals + (partial_sums(E, keys[t].shape[0], BLOCK_N),)
    return maxima, totals


@triton.jit
def finite_maximum(maximum):
    """Return the maximum, or 0 where it is over nothing."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


# fmt: off
@triton.jit
def column_sums(
    keys, maxima, totals, q, rows, padding, sample, q_n, begin, n, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Return `totals` plus sum_i exp(S_ij + f_i - maximum_j) from `begin` on, per tile of keys."""
    for first in range(begin, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        # [BLOCK_N, BLOCK_D]
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        f = tl.load(rows + i)
        larger = ()
        for t in tl.static_range(len(keys)):
            # [TILE, BLOCK_N]
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
    """Store g_j, -inf where not valid, into `cols`; return whether sums lost digits."""
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
    """Store g_j = log2_ratio - LSE_i(S + f), -inf where not valid, into `cols`."""
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
    """Store g, -inf where not valid, into `cols`: the first half of `closure_kernel`."""
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
    """Store -max_j(S_ij + g_j), -inf where not valid, into `rows`."""
    TILE: tl.constexpr = keys[0].shape[0]
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        # [BLOCK_N, BLOCK_D]
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
        for t in tl.static_range(len(keys)):
            # [BLOCK_N, TILE]
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
    """Store softmax_j(S + g) v; return whether sums, shifted by `rows`, lost digits."""
    TILE: tl.constexpr = keys[0].shape[0]
    worst = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, n, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
        # [BLOCK_N, BLOCK_D]
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        shift = tl.load(rows + i)
        # [BLOCK_N, 16]
        sums = tl.zeros([BLOCK_N, 16], tl.float32)
        # [BLOCK_N, BLOCK_V]
        weighted = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        for t in tl.static_range(len(keys)):
            # [BLOCK_N, TILE]
            S = product(q_tile, tl.trans(keys[t]), OPERAND, PRECISION)
            g = tl.load(cols + t * TILE + tl.arange(0, TILE))
            # [BLOCK_N, TILE]
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
    """Compute softmax_j(S + g) v, g = log2_ratio - LSE_i(S + start), for up to TILES TILE keys.

    `start` is in natural units. `rows` `[.., ROWS]` and `cols` `[.., TILES TILE]` are buffers for
    the duals of a head.
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
    tl.debug_barrier()  # other threads wrote what is read from here on
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
    """Write `out`; `start` is f^0, or None for zeros. No duals are kept."""
    rows, cols, tiles = _room(p)
    closure_kernel[(p.programs,)](
        p.q, p.k, p.v, start, p.padding, out, rows, cols, *strides(p.q, p.k, p.v, out),
        p.heads, p.n, p.m, p.to_log2, p.log2_ratio, **p.values, **tiles,
        HAS_START=start is not None, num_warps=4, num_stages=1, maxnreg=MAX_REGISTERS,
        **EVERY_LAUNCH,
    )  # fmt: skip


def column_step(p: Launch, start: Tensor | None) -> Tensor:
    """Return g^1 in units of log 2, -inf where not valid: a row of at least m entries per head."""
    rows, cols, tiles = _room(p)
    column_step_kernel[(p.programs,)](
        p.q, p.k, start, p.padding, rows, cols, *strides(p.q, p.k),
        p.heads, p.n, p.m, p.to_log2, p.log2_ratio, **p.logits, **tiles,
        HAS_START=start is not None, num_warps=4, num_stages=1, **EVERY_LAUNCH,
    )  # fmt: skip
    return cols


def _room(p: Launch) -> tuple[Tensor, Tensor, dict[str, object]]:
    """Allocate the duals of queries and keys; return them and the constants of both kernels."""
    n, tiles = block(p.n, BLOCK_QUERIES), triton.cdiv(p.m, KEY_TILE)
    rows = p.q.new_empty(p.programs, n, dtype=torch.float32)
    cols = p.q.new_empty(p.programs, tiles * KEY_TILE, dtype=torch.float32)
    return rows, cols, {"ROWS": n, "BLOCK_N": BLOCK_QUERIES, "TILES": tiles, "TILE": KEY_TILE}
