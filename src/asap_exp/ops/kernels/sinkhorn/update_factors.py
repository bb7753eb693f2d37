"""The factors of a gradient's sum over updates, made once per token, as halves on the matrix units.

`tiled_gradient.logit_kernel` needs sum_t A^t_ij (w^t_j + df^t_i), for which the A^t of successive
updates are written as A^a_ij, of one of them, times a factor of the query, exp(f^t - f^a) with and
without df^t, and one of the key, exp(g^t - g^a) without and with w^t. float16 has as long a
mantissa as TF32, but half its width and a short range. A head whose duals have moved by less than
2^`LARGEST_CHANGE` needs the exponentials of A^T alone; the updates of others are taken in groups,
each with an A^a of its own. Weights are multiplied by a power of two, and a factor with a weight
and one without take the place of the weight in memory.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.tiles import BY_INTERPRETER, EVERY_LAUNCH, block, valid_tokens

LARGEST_CHANGE = 15.0
"""Change of a dual, in units of log 2, from which float16 holds no factors: it ends below 2^16, and
loses precision from 2^-14 downwards."""

GROUP_CHANGE = 13.0
"""Largest change of a dual within a group, which leaves room for weights of different size."""

GROUP = 8
"""Most updates of a group: their factors fill one product of the matrix units."""

RUN = 16
"""Tokens whose factors of one update lie together: first `RUN` of one kind, then of the other."""

RUN_TOKENS = tl.constexpr(RUN)

TOKENS = 128
"""Tokens of a program."""


class Factors(NamedTuple):
    """How the factors of every head were made."""

    unit: Tensor
    """Power of two by which sums of products are larger, `[B, H]`."""

    begin: Tensor
    """First update of the group of each update, `[B, H, T]`."""

    anchor: Tensor
    """Update a of the group of each update, `[B, H, T]`; T for all updates if there are no groups.
    """


def packed_factors(
    p: Launch, rows: Tensor, row_weights: Tensor, cols: Tensor, col_weights: Tensor
) -> Factors:
    """Replace weights by factors.

    Duals are f^0 .. f^T and g^0 .. g^T, weights df^t and w^t for t < T; the numbers of tokens have
    to be multiples of `RUN`.
    """
    sides = (rows, row_weights), (cols, col_weights)
    blocks = [triton.cdiv(weights.shape[3], TOKENS) for _, weights in sides]
    steps = block(p.num_iters, minimum=2)
    # The changes from the last dual, the weights, and the changes of one update.
    largest = p.q.new_empty(2 + p.num_iters, p.programs, sum(blocks), dtype=torch.float32)
    options = {"STEPS": steps, "TOKENS": TOKENS, "HAS_PADDING": p.padding is not None}
    for (duals, weights), count, first in zip(sides, blocks, (0, blocks[0]), strict=True):
        extent_kernel[(p.programs * count,)](
            duals, weights, p.padding, largest, p.programs, sum(blocks), first,
            p.heads, weights.shape[3], p.num_iters, **options, **EVERY_LAUNCH,
        )  # fmt: skip
    of_head = largest.amax(dim=2)
    unit = p.q.new_empty(p.q.shape[:2], dtype=torch.float32)
    begin, anchor = p.q.new_empty(2, *p.q.shape[:2], p.num_iters, dtype=torch.int32)
    group_kernel[(p.programs,)](
        of_head, unit, begin, anchor, p.programs, p.num_iters,
        LARGEST_CHANGE=LARGEST_CHANGE, GROUP_CHANGE=GROUP_CHANGE, GROUP=GROUP,
        num_warps=1, **EVERY_LAUNCH,
    )  # fmt: skip
    for (duals, weights), count in zip(sides, blocks, strict=True):
        pack_kernel[(p.programs * count,)](
            duals, weights, weights.view(torch.float16), p.padding, unit, anchor,
            p.heads, weights.shape[3], p.num_iters, OF_QUERIES=weights is row_weights, **options,
            **EVERY_LAUNCH,
        )  # fmt: skip
    return Factors(unit, begin, anchor)


# fmt: off
@triton.jit
def head_tile(
    padding, heads, count, num_iters, STEPS: tl.constexpr, TOKENS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Return the head, tokens, steps, where weights lie and which exist, of `[STEPS, TOKENS]`."""
    blocks = tl.cdiv(count, TOKENS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    valid = valid_tokens(padding, head // heads, i, count, HAS_PADDING)
    t = tl.arange(0, STEPS)
    places = t[:, None] * count + i[None, :]
    return head, i, t, places, (t < num_iters)[:, None] & valid[None, :]


# fmt: off
@triton.jit
def extent_kernel(
    duals, weights, padding, largest, programs, blocks_of_head, first, heads, count, num_iters,
    STEPS: tl.constexpr, TOKENS: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Write what is largest in each block of tokens: change from the last dual, weight, and steps.

    `largest` is `[2 + T, programs, blocks_of_head]`, with the changes of a dual from t to t + 1
    from 2 on; the blocks of this side begin at `first`.
    """
    head, _, t, places, mask = head_tile(
        padding, heads, count, num_iters, STEPS, TOKENS, HAS_PADDING
    )
    weight = tl.load(weights + head * num_iters * count + places, mask=mask, other=0.0)
    duals += head * (num_iters + 1) * count
    dual = tl.load(duals + places, mask=mask, other=0.0)
    last = tl.load(duals + num_iters * count + places - t[:, None] * count, mask=mask, other=0.0)
    step = tl.load(duals + count + places, mask=mask, other=0.0) - dual
    largest += head * blocks_of_head + first + tl.program_id(0) % tl.cdiv(count, TOKENS)
    entries = programs * blocks_of_head
    tl.store(largest, tl.max(tl.max(tl.abs(dual - last), axis=1), axis=0))
    tl.store(largest + entries, tl.max(tl.max(tl.abs(weight), axis=1), axis=0))
    steps = largest + (2 + t).to(tl.int64) * entries
    tl.store(steps, tl.max(tl.abs(step), axis=1), mask=t < num_iters)


@triton.jit
def as_far_back(steps, programs, t, last, GROUP_CHANGE: tl.constexpr, GROUP: tl.constexpr):
    """Return the first update from which duals change little until t, in a group up to `last`."""
    moved = tl.load(steps + (t - 1) * programs, mask=t > 0, other=0.0)
    while (t > 0) & (moved <= GROUP_CHANGE) & (last - t < GROUP - 1):
        t -= 1
        moved += tl.load(steps + (t - 1) * programs, mask=t > 0, other=0.0)
    return t


# fmt: off
@triton.jit
def group_kernel(
    largest, unit, begin, anchor, programs, num_iters,
    LARGEST_CHANGE: tl.constexpr, GROUP_CHANGE: tl.constexpr, GROUP: tl.constexpr,
):
    # fmt: on
    """Decide which updates of a head are a group; `largest` is `[2 + T, programs]`.

    From the last update of a group its anchor is as far back as duals may change within it, and its
    first update as far before the anchor. The steps of a dual are added up: most go on as they are.
    """
    head = tl.program_id(0).to(tl.int64)
    most_change, most_weight = tl.load(largest + head), tl.load(largest + programs + head)
    largest += 2 * programs + head
    begin += head * num_iters
    anchor += head * num_iters
    grouped = most_change >= LARGEST_CHANGE
    # No factor is above 2^15. The bounds keep the unit, and what else is multiplied by it, finite.
    change = tl.where(grouped, GROUP_CHANGE, most_change)
    room = tl.floor(LARGEST_CHANGE - change - tl.log2(most_weight))
    tl.store(unit + head, tl.exp2(tl.minimum(tl.maximum(room, -120.0), 100.0)))
    if grouped:
        last = num_iters - 1
        while last >= 0:
            a = as_far_back(largest, programs, last, last, GROUP_CHANGE, GROUP)
            first = as_far_back(largest, programs, a, last, GROUP_CHANGE, GROUP)
            for t in range(first, last + 1):
                tl.store(begin + t, first)
                tl.store(anchor + t, a)
            last = first - 1
    else:
        for t in range(num_iters):
            tl.store(begin + t, 0)
            tl.store(anchor + t, num_iters)


# fmt: off
@triton.jit
def pack_kernel(
    duals, weights, factors, padding, unit, anchor, heads, count, num_iters,
    STEPS: tl.constexpr, TOKENS: tl.constexpr, OF_QUERIES: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Overwrite weights by factors.

    The factor 2 t of a query has no weight, and 2 t + 1 that of t; for a key it is the other way
    round. Those of a query are negative: the sum is subtracted.
    """
    head, i, t, places, mask = head_tile(
        padding, heads, count, num_iters, STEPS, TOKENS, HAS_PADDING
    )
    weight = tl.load(weights + head * num_iters * count + places, mask=mask, other=0.0)
    a = tl.load(anchor + head * num_iters + t, mask=t < num_iters, other=0)
    duals += head * (num_iters + 1) * count
    change = tl.load(duals + places, mask=mask, other=0.0)
    change -= tl.load(duals + a[:, None] * count + i[None, :], mask=mask, other=0.0)
    plain = tl.where(mask, tl.exp2(change), 0.0)
    if OF_QUERIES:
        plain = -plain
    weighted = plain * (weight * tl.load(unit + head))
    if not OF_QUERIES:
        plain, weighted = weighted, plain
    tl.debug_barrier()  # weights of this block of tokens are read before they are overwritten
    exists = (t < num_iters)[:, None] & (i < count)[None, :]
    factors += head * num_iters * count * 2
    even = factor_places(2 * t[:, None], i[None, :], count)
    tl.store(factors + even, plain.to(tl.float16), mask=exists)
    tl.store(factors + even + RUN_TOKENS, weighted.to(tl.float16), mask=exists)


@triton.jit
def factor_places(c, i, count):
    """Return where the factors `c` of tokens `i` lie in those of a head."""
    return (
        (c // 2) * (2 * count)
        + (c % 2) * RUN_TOKENS
        + (i // RUN_TOKENS) * (2 * RUN_TOKENS)
        + i % RUN_TOKENS
    )


@triton.jit
def load_factors(factors, c, i, count, updates):
    """Load the factors `c` of tokens `i` of a head, in the shape of both; 0 from `updates` on."""
    mask = (c < 2 * updates) & (i < count)
    return tl.load(factors + factor_places(c, i, count), mask=mask, other=0.0)


@triton.jit
def product_of_halves(a, b, total):
    """Return a b + total, for float16 tiles a and b, in float32."""
    if BY_INTERPRETER:  # its sums would be in float16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total)
