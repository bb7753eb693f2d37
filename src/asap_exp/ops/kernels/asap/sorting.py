"""A bitonic sort of many rows in one program that hardly ever leaves a thread or a warp.

A bitonic sort compares across the low bits of a position most often. `tl.sort` may spread these
bits over lanes and warps; here they are along axis 1 of the tile, which is in a thread's registers
if the tile came from `to_thread_layout` or `sort_product`. Only the speed depends on this. A pair
in registers then costs a minimum and a maximum, since a stage complements what it sorts in
descending order.
The stages are a loop: unrolled, the stages for 4,096 words take a minute to compile.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def log2(size: int) -> int:
    """Return the exponent of a power of two."""
    return size.bit_length() - 1


@triton.constexpr_function
def axis_of(bit: int, bits: int, inner: int) -> int:
    """Return the axis of position bit `bit` in a tile `[rows] + [2] * bits`, low bits first."""
    return inner - bit if bit < inner else bits + inner - bit


@triton.jit
def position_bit(bit: tl.constexpr, bits: tl.constexpr, inner: tl.constexpr):
    """Return bit `bit` of every position, shaped for broadcasting against the tile."""
    axis: tl.constexpr = axis_of(bit, bits, inner)
    return tl.reshape(tl.arange(0, 2), [1] * axis + [2] + [1] * (bits - axis))


@triton.jit
def exchange(tile, axis: tl.constexpr):
    """Return the other value of each pair along an axis of length 2; for integers."""
    # Sums wrap around, so this is exact.
    return tl.sum(tile, axis, keep_dims=True) - tile


@triton.jit
def compare_exchange(
    tile, bit: tl.constexpr, stage: tl.constexpr, bits: tl.constexpr, inner: tl.constexpr
):
    """Order the pairs whose positions differ in `bit`; descending where bit `stage` is set."""
    other = exchange(tile, axis_of(bit, bits, inner))
    keeps_larger = position_bit(bit, bits, inner)
    if stage < bits:
        keeps_larger = keeps_larger ^ position_bit(stage, bits, inner)
    return tl.where(keeps_larger == 1, tl.maximum(tile, other), tl.minimum(tile, other))


@triton.jit
def sort_rows(tile):
    """Sort the rows of integers `[rows, 2^inner, 2^outer]`; returns `[rows, 2^(inner + outer)]`.

    Position a * 2^inner + b of row r is at `[r, b, a]` while sorting. The order is ascending.
    """
    ROWS: tl.constexpr = tile.shape[0]
    inner: tl.constexpr = log2(tile.shape[1])
    outer: tl.constexpr = log2(tile.shape[2])
    bits: tl.constexpr = inner + outer
    tile = tl.reshape(tile, [ROWS] + [2] * bits)
    for stage in tl.static_range(1, inner):
        for step in tl.static_range(stage):
            tile = compare_exchange(tile, stage - 1 - step, stage, bits, inner)
    upper_bits = tl.reshape(tl.arange(0, 2**outer), [1] * (inner + 1) + [2] * outer)
    complemented = tl.zeros_like(upper_bits)
    for stage in tl.range(0, outer + 1):
        downwards = -((upper_bits >> stage) & 1)
        tile = tile ^ (downwards ^ complemented)
        complemented = downwards
        for step in tl.static_range(outer):
            if stage > outer - 1 - step:
                tile = compare_exchange(tile, bits - 1 - step, bits, bits, inner)
        for step in tl.static_range(inner):
            tile = compare_exchange(tile, inner - 1 - step, bits, bits, inner)
    tile = tl.permute(tl.reshape(tile, [ROWS, 2**inner, 2**outer]), (0, 2, 1))
    return tl.reshape(tile, [ROWS, 2**bits])


# From a vector of unknown alignment, thread t of T loads the values t, t + T, t + 2 T, ...


@triton.jit
def to_thread_layout(vector, ROWS: tl.constexpr, PER_THREAD: tl.constexpr):
    """Return a vector as `sort_rows` needs it: each thread's PER_THREAD values along axis 1."""
    tile = tl.reshape(vector, [PER_THREAD, ROWS, vector.shape[0] // (ROWS * PER_THREAD)])
    return tl.permute(tile, (1, 0, 2))


@triton.jit
def from_thread_layout(rows, PER_THREAD: tl.constexpr):
    """Return the result of `sort_rows` as a vector that the same threads store."""
    tile = tl.reshape(rows, [rows.shape[0], rows.shape[1] // PER_THREAD, PER_THREAD])
    return tl.reshape(tl.permute(tile, (2, 0, 1)), [rows.shape[0] * rows.shape[1]])


# The matrix units spread bits 1 and 2 of a product's columns over four lanes, bits from 3 on first
# over the warps, and the others over the registers.


@triton.jit
def sort_product(words, ROWS: tl.constexpr, SIZE: tl.constexpr, WARPS: tl.constexpr):
    """Sort the rows of integers `[ROWS, SIZE]` in the layout of a product."""
    tile = tl.reshape(words, [ROWS, SIZE // (8 * WARPS), WARPS, 4, 2])
    tile = tl.permute(tile, (0, 1, 4, 2, 3))
    return sort_rows(tl.reshape(tile, [ROWS, SIZE // (4 * WARPS), WARPS * 4]))
