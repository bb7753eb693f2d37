"""The factors of a gradient's sum over updates, made once per token, as halves on the matrix units.

`tiled_gradient.logit_kernel` needs sum_t A^t_ij (w^t_j + df^t_i) / A^T_ij: 2 T products of a factor
of the query, exp(f^t - f^T) with and without df^t, and one of the key, exp(g^t - g^T) without and
with w^t. float16 has as long a mantissa as TF32, but half its width and a short range: a head whose
duals have moved by less than 2^`LARGEST_CHANGE` keeps it, times a power of two for the weights.
A factor with a weight and one without take the place of the weight in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.tiles import BY_INTERPRETER, EVERY_LAUNCH, block, valid_tokens

LARGEST_CHANGE = 15.0
"""Change of a dual, in units of log 2, from which float16 holds no factors: it ends below 2^16, and
loses precision from 2^-14 downwards."""

RUN = 16
"""Tokens whose factors of one update lie together: first `RUN` of one kind, then of the other."""

RUN_TOKENS = tl.constexpr(RUN)

TOKENS = 128
"""Tokens of a program."""


def packed_factors(
    p: Launch, rows: Tensor, row_weights: Tensor, cols: Tensor, col_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace weights by factors where float16 holds them; return their unit and the duals' change.

    Both are `[B, H]`. The unit is the power of two by which sums of products are larger, or 0 for a
    head whose weights are as they were. The change is the largest of any dual from the last, in
    units of log 2. Duals are f^0 .. f^T and g^0 .. g^T, weights df^t and w^t for t < T; the numbers
    of tokens have to be multiples of `RUN`.
    """
    sides = (rows, row_weights), (cols, col_weights)
    blocks = [triton.cdiv(weights.shape[3], TOKENS) for _, weights in sides]
    largest = p.q.new_empty(p.programs, 2, sum(blocks), dtype=torch.float32)
    unit, change = p.q.new_empty(2, *p.q.shape[:2], dtype=torch.float32)
    options = {
        "STEPS": block(p.num_iters, minimum=2),
        "TOKENS": TOKENS,
        "HAS_PADDING": p.padding is not None,
    }
    for (duals, weights), count, first in zip(sides, blocks, (0, blocks[0]), strict=True):
        extent_kernel[(p.programs * count,)](
            duals, weights, p.padding, largest, sum(blocks), first,
            p.heads, weights.shape[3], p.num_iters, **options, **EVERY_LAUNCH,
        )  # fmt: skip
    for (duals, weights), count in zip(sides, blocks, strict=True):
        pack_kernel[(p.programs * count,)](
            duals, weights, weights.view(torch.float16), p.padding, largest, unit, change,
            sum(blocks), p.heads, weights.shape[3], p.num_iters, LARGEST_CHANGE=LARGEST_CHANGE,
            BLOCKS=block(sum(blocks), minimum=2), OF_QUERIES=weights is row_weights, **options,
            **EVERY_LAUNCH,
        )  # fmt: skip
    return unit, change


# fmt: off
@triton.jit
def head_tile(
    duals, padding, heads, count, num_iters, STEPS: tl.constexpr, TOKENS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Return the head, tokens, steps, where duals and weights lie, the changes, and which exist.

    The shapes of the last three are `[STEPS, TOKENS]`.
    """
    blocks = tl.cdiv(count, TOKENS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    valid = valid_tokens(padding, head // heads, i, count, HAS_PADDING)
    t = tl.arange(0, STEPS)
    places = t[:, None] * count + i[None, :]
    mask = (t < num_iters)[:, None] & valid[None, :]
    duals += head * (num_iters + 1) * count
    last = tl.load(duals + num_iters * count + i, mask=valid, other=0.0)
    change = tl.where(mask, tl.load(duals + places, mask=mask, other=0.0) - last[None, :], 0.0)
    return head, i, t, places, change, mask


# fmt: off
@triton.jit
def extent_kernel(
    duals, weights, padding, largest, blocks_of_head, first, heads, count, num_iters,
    STEPS: tl.constexpr, TOKENS: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Write the largest change of a dual, and the largest weight, of each block of tokens.

    `largest` is `[programs, 2, blocks_of_head]`; the blocks of this side begin at `first`.
    """
    head, _, _, places, change, mask = head_tile(
        duals, padding, heads, count, num_iters, STEPS, TOKENS, HAS_PADDING
    )
    weight = tl.load(weights + head * num_iters * count + places, mask=mask, other=0.0)
    largest += 2 * head * blocks_of_head + first + tl.program_id(0) % tl.cdiv(count, TOKENS)
    tl.store(largest, tl.max(tl.max(tl.abs(change), axis=1), axis=0))
    tl.store(largest + blocks_of_head, tl.max(tl.max(tl.abs(weight), axis=1), axis=0))


# fmt: off
@triton.jit
def pack_kernel(
    duals, weights, factors, padding, largest, unit, changes,
    blocks_of_head, heads, count, num_iters,
    LARGEST_CHANGE: tl.constexpr, STEPS: tl.constexpr, TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr, OF_QUERIES: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Overwrite weights by factors if the head's duals have changed little.

    The factor 2 t of a query has no weight, and 2 t + 1 that of t; for a key it is the other way
    round. Those of a query are negative: the sum is subtracted.
    """
    head, i, t, places, change, mask = head_tile(
        duals, padding, heads, count, num_iters, STEPS, TOKENS, HAS_PADDING
    )
    block_number = tl.arange(0, BLOCKS)
    largest += 2 * head * blocks_of_head + block_number
    in_head = block_number < blocks_of_head
    most_change = tl.max(tl.load(largest, mask=in_head, other=0.0), axis=0)
    most_weight = tl.max(tl.load(largest + blocks_of_head, mask=in_head, other=0.0), axis=0)
    # No factor is above 2^15. The bounds keep the unit, and what else is multiplied by it, finite.
    room = tl.floor(LARGEST_CHANGE - most_change - tl.log2(most_weight))
    to_unit = tl.exp2(tl.minimum(tl.maximum(room, -120.0), 100.0))
    to_unit = tl.where(most_change < LARGEST_CHANGE, to_unit, 0.0)
    if OF_QUERIES:
        tl.store(unit + head, to_unit)
        tl.store(changes + head, most_change)
    if to_unit > 0.0:
        weight = tl.load(weights + head * num_iters * count + places, mask=mask, other=0.0)
        plain = tl.where(mask, tl.exp2(change), 0.0)
        if OF_QUERIES:
            plain = -plain
        weighted = plain * (weight * to_unit)
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
def load_factors(factors, c, i, count, num_iters):
    """Load the factors `c` of tokens `i` of a head, in the shape of both; 0 beyond the last."""
    mask = (c < 2 * num_iters) & (i < count)
    return tl.load(factors + factor_places(c, i, count), mask=mask, other=0.0)


@triton.jit
def product_of_halves(a, b, total):
    """Return a b + total, for float16 tiles a and b, in float32."""
    if BY_INTERPRETER:  # its sums would be in float16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total)
