"""Kernels of the sliced dual: sort the projections of a head, sum up, undo the sort, weight.

Letters: see `kernels.tiles`. A program has PER_PROGRAM slices of SIZE words, PER_THREAD of these in
one thread. SORT_64: words have 64 bits. NO_TAIL: n = SIZE and there is no padding. SINGLE_PROGRAM:
one program has all slices of a head.
"""

import triton
import triton.language as tl

from asap_exp.ops.kernels.asap.adaptive_features import adaptive_weights, pool
from asap_exp.ops.kernels.asap.projection import load_directions, project_tokens
from asap_exp.ops.kernels.asap.sorted_rows import sort_images, sort_words, sorted_potentials
from asap_exp.ops.kernels.asap.sorting import from_thread_layout, sort_rows, to_thread_layout
from asap_exp.ops.kernels.tiles import valid_tokens


@triton.jit
def centred(f, valid):
    """Return f minus its mean over the valid tokens, 0 elsewhere."""
    f = tl.where(valid, f, 0.0)
    count = tl.maximum(tl.sum(valid.to(tl.int32)), 1).to(tl.float32)
    return tl.where(valid, f - tl.sum(f) / count, 0.0)


# fmt: off
@triton.jit
def sort_sides(
    projections, padding, b, first, row, n, slices,
    PER_PROGRAM: tl.constexpr, SIZE: tl.constexpr, PER_THREAD: tl.constexpr, NO_TAIL: tl.constexpr,
    SORT_64: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Return words of the queries and images of the keys, `[PER_PROGRAM, SIZE]`, rows sorted."""
    RUN: tl.constexpr = SIZE // PER_THREAD
    place = tl.arange(0, PER_PROGRAM * SIZE)
    i = place // (PER_PROGRAM * RUN) * RUN + place % RUN
    end = SIZE if NO_TAIL else n
    inside = (row < slices) & (i < end)
    valid = valid_tokens(padding, b, i, end, HAS_PADDING)
    y = tl.load(projections + (slices + row) * n + i, mask=inside, other=0.0)
    y_images = sort_rows(to_thread_layout(sort_images(y, valid), PER_PROGRAM, PER_THREAD))
    x = tl.load(projections + row * n + i, mask=inside, other=0.0)
    x = to_thread_layout(x, PER_PROGRAM, PER_THREAD)
    if not SORT_64:
        # Only differences of x matter; relative to a token, x loses less precision to the index.
        s = first + tl.arange(0, PER_PROGRAM)
        x -= tl.load(projections + s * n, mask=s < slices, other=0.0)[:, None, None]
    i = to_thread_layout(i, PER_PROGRAM, PER_THREAD)
    valid = to_thread_layout(valid, PER_PROGRAM, PER_THREAD)
    return sort_rows(sort_words(x, i, valid, SIZE, SORT_64)), y_images


# fmt: off
@triton.jit
def weigh(
    phi, projections, weight, adaptive_weight, partial_sums, padding, b, h, first, n, slices,
    PER_PROGRAM: tl.constexpr, SIZE: tl.constexpr, NO_TAIL: tl.constexpr,
    HAS_PADDING: tl.constexpr, SINGLE_PROGRAM: tl.constexpr, ADAPTIVE: tl.constexpr,
):
    # fmt: on
    """Store the weighted sum of phi, with ADAPTIVE followed by the weights of keys and queries.

    With SINGLE_PROGRAM, the sum is added to the stored values, and the result is centred.
    """
    i = tl.arange(0, SIZE)
    s = first + tl.arange(0, PER_PROGRAM)
    end = SIZE if NO_TAIL else n
    inside = (s < slices)[:, None] & (i < end)[None, :]
    # [PER_PROGRAM, SIZE]
    values = tl.load(phi + s[:, None] * n + i[None, :], mask=inside, other=0.0)
    # [PER_PROGRAM]
    w = tl.load(weight + s, mask=s < slices, other=0.0).to(tl.float32)
    if ADAPTIVE:
        place = projections + s[:, None] * n + i[None, :]
        x = tl.load(place, mask=inside, other=0.0)
        y = tl.load(place + slices * n, mask=inside, other=0.0)
        valid = valid_tokens(padding, b, i, end, HAS_PADDING)
        count = tl.sum(valid.to(tl.int32))
        more, keys, queries = adaptive_weights(
            x, y, adaptive_weight, h, valid, count, first, slices, PER_PROGRAM
        )
        w += more
        tl.store(partial_sums + n + i, keys, mask=i < end)
        tl.store(partial_sums + 2 * n + i, queries, mask=i < end)
    # [SIZE]
    f = tl.sum(values * w[:, None], 0)
    if SINGLE_PROGRAM:
        f += tl.load(partial_sums + i, mask=i < end, other=0.0)
        f = centred(f, valid_tokens(padding, b, i, end, HAS_PADDING))
    tl.store(partial_sums + i, f, mask=i < end)


# fmt: off
@triton.jit
def sort_slices(
    group, head, projections, padding, weight, adaptive_weight, phi, partial_sums,
    phi_h, heads, n, slices,
    PER_PROGRAM: tl.constexpr, SIZE: tl.constexpr, PER_THREAD: tl.constexpr, NO_TAIL: tl.constexpr,
    SORT_64: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_WEIGHT: tl.constexpr, SINGLE_PROGRAM: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    # fmt: on
    """Sort some slices of a head; with a weight, also store their part of the weighted sum."""
    b, h = head // heads, head % heads
    first = group * PER_PROGRAM
    position = tl.arange(0, PER_PROGRAM * SIZE)
    row = first + position % (PER_PROGRAM * SIZE // PER_THREAD) // (SIZE // PER_THREAD)
    projections += head * 2 * slices * n
    x_words, y_images = sort_sides(
        projections, padding, b, first, row, n, slices,
        PER_PROGRAM, SIZE, PER_THREAD, NO_TAIL, SORT_64, HAS_PADDING,
    )  # fmt: skip
    tl.debug_barrier()  # phi may overwrite x

    end = SIZE if NO_TAIL else n  # a constant removes the masks
    count = end
    place = tl.arange(0, SIZE)
    if HAS_PADDING:
        count = tl.sum(valid_tokens(padding, b, place, n, HAS_PADDING).to(tl.int32))
    # [PER_PROGRAM, SIZE]
    values = sorted_potentials(x_words, y_images, count, PER_THREAD, SORT_64)
    if not HAS_WEIGHT:
        occupied = place[None, :] < count
        values = tl.where(occupied, values, 0.0)
        inverse_count = 1.0 / tl.maximum(count, 1).to(tl.float32)
        values = tl.where(occupied, values - (tl.sum(values, 1) * inverse_count)[:, None], 0.0)

    phi += head * phi_h
    token = from_thread_layout((x_words & (SIZE - 1)).to(tl.int32), PER_THREAD)
    inside = (row < slices) & (token < end)
    tl.store(phi + row * n + token, from_thread_layout(values, PER_THREAD), mask=inside)
    if HAS_WEIGHT:
        tl.debug_barrier()  # each token's potentials were written by other threads
        SUMS: tl.constexpr = 3 if ADAPTIVE else 1
        partial_sums += (head * tl.cdiv(slices, PER_PROGRAM) + group) * SUMS * n
        weigh(
            phi, projections, weight + h * slices, adaptive_weight,
            partial_sums, padding, b, h, first, n, slices,
            PER_PROGRAM, SIZE, NO_TAIL, HAS_PADDING, SINGLE_PROGRAM, ADAPTIVE,
        )  # fmt: skip


# `sort_slices` needs `n` unspecialised, so that a thread loads single words.
# fmt: off
@triton.jit(do_not_specialize=["n"])
def potential_kernel(
    projections, padding, weight, adaptive_weight, phi, partial_sums,
    phi_h, heads, n, slices,
    PER_PROGRAM: tl.constexpr, SIZE: tl.constexpr, PER_THREAD: tl.constexpr, NO_TAIL: tl.constexpr,
    SORT_64: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_WEIGHT: tl.constexpr, SINGLE_PROGRAM: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    """Run `sort_slices`; one program per group of slices of a head."""
    sort_slices(
        tl.program_id(1), tl.program_id(0).to(tl.int64),
        projections, padding, weight, adaptive_weight, phi, partial_sums,
        phi_h, heads, n, slices, PER_PROGRAM, SIZE, PER_THREAD, NO_TAIL, SORT_64, HAS_PADDING,
        HAS_WEIGHT, SINGLE_PROGRAM, ADAPTIVE,
    )


@triton.jit(do_not_specialize=["n"])
def dual_kernel(
    q, k, theta, query_weight, padding, weight, adaptive_weight,
    projections, phi, partial_sums, f_hat,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, slices, slope, phi_h,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
    SLICES: tl.constexpr, TERMS: tl.constexpr,
    THETA_OPERAND: tl.constexpr, THETA_PRECISION: tl.constexpr,
    PER_PROGRAM: tl.constexpr, SIZE: tl.constexpr, PER_THREAD: tl.constexpr, NO_TAIL: tl.constexpr,
    SORT_64: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_QUERY_WEIGHT: tl.constexpr, ADAPTIVE: tl.constexpr,
):
    """Compute f_hat, the projections included; one program per head."""
    head = tl.program_id(0).to(tl.int64)
    theta += head % heads * slices * D
    directions = load_directions(theta, slices, D, BLOCK_D, SLICES, TERMS, THETA_OPERAND)
    for first in tl.range(0, n, TOKENS):
        project_tokens(
            first, head, directions, q, k, query_weight, padding, projections, f_hat,
            q_b, q_h, q_n, k_b, k_h, k_n, heads, n, slices, slope,
            D, BLOCK_D, TOKENS, SLICES, TERMS, THETA_PRECISION, HAS_PADDING, HAS_QUERY_WEIGHT,
        )
    tl.debug_barrier()  # other threads made these projections
    sort_slices(
        0, head, projections, padding, weight, adaptive_weight, phi, partial_sums,
        phi_h, heads, n, slices, PER_PROGRAM, SIZE, PER_THREAD, NO_TAIL, SORT_64, HAS_PADDING,
        True, not ADAPTIVE, ADAPTIVE,
    )
    if ADAPTIVE:
        tl.debug_barrier()  # other threads stored these sums
        pool(
            head, q, k, partial_sums, padding, f_hat,
            q_b, q_h, q_n, k_b, k_h, k_n, heads, n, 1,
            D, BLOCK_D, TOKENS, THETA_OPERAND, THETA_PRECISION, HAS_PADDING,
        )
# fmt: on


@triton.jit
def sum_kernel(
    partial_sums, padding, f_hat, heads, n, groups, BLOCK_N: tl.constexpr, HAS_PADDING: tl.constexpr
):
    """Add the programs' partial sums to f_hat, and centre it over the valid tokens of a head."""
    head = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_N)
    valid = valid_tokens(padding, head // heads, i, n, HAS_PADDING)
    f_hat += head * n + i
    f = tl.load(f_hat, mask=valid, other=0.0)
    for group in range(groups):
        f += tl.load(partial_sums + (head * groups + group) * n + i, mask=valid, other=0.0)
    tl.store(f_hat, centred(f, valid), mask=i < n)
