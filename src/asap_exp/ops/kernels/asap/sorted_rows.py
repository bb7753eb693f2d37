"""Potentials of sorted rows: integers that sort like floats, and sums along rows in registers.

A query's projection x is mapped to an integer in the same order, with the token's index in the low
bits. A word of 64 bits holds a whole float32. For 16-bit inputs, words have 32 bits, and the index
takes the last ceil(log2 n) bits of x: a relative error of at most 4e-6 at n = 64, 6e-5 at 1024 and
2.4e-4 at 4096. For a key's projection y, only the value matters, so it keeps all 32 bits.

There are ROWS rows of SIZE words; PER_THREAD neighbours in a row are in one thread. SORT_64: words
have 64 bits.
"""

import triton
import triton.language as tl

from asap_exp.ops.kernels.asap.sorting import exchange, log2

LARGEST = tl.constexpr(2**31 - 1)


@triton.jit
def flip_order(bits):
    """Map the bits of a float32 to an integer that sorts like it, or back: it is an involution."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def sort_images(values, valid):
    """Return int32 words in the order of float32 `values`; invalid words sort last."""
    return tl.where(valid, flip_order(values.to(tl.int32, bitcast=True)), LARGEST)


@triton.jit
def sort_words(values, index, valid, SIZE: tl.constexpr, SORT_64: tl.constexpr):
    """Return distinct integers in the order of `values`, with the index in the low bits."""
    image = sort_images(values, valid)
    return ((image.to(tl.int64) << 32) | index) if SORT_64 else ((image & -SIZE) | index)


@triton.jit
def sorted_images(words, SIZE: tl.constexpr, SORT_64: tl.constexpr):
    """Return the images in `words`, with the bits of the index set to half their range."""
    return (words >> 32).to(tl.int32) if SORT_64 else ((words & -SIZE) | (SIZE // 2))


@triton.jit
def image_values(images):
    """Invert `sort_images`."""
    return flip_order(images).to(tl.float32, bitcast=True)


# In `predecessor` and `exclusive_sums`, rows are `[rows, 2, 2, ...]`. A thread has PER_THREAD
# neighbours along the last axes, which are split off one by one until it has one value per row.


@triton.jit
def exchange_floats(values, axis: tl.constexpr):
    return exchange(values.to(tl.int32, bitcast=True), axis).to(tl.float32, bitcast=True)


@triton.jit
def predecessor(values, run, PER_THREAD: tl.constexpr):
    """Return each value's predecessor in its row; the first value's predecessor is arbitrary."""
    if PER_THREAD > 1:
        even, odd = tl.split(values)
        found = tl.join(predecessor(odd, run, PER_THREAD // 2), even)
    else:
        found = values
        for bit in tl.static_range(len(values.shape) - 1):
            values = exchange_floats(values, len(values.shape) - 1 - bit)
            # `values` now come from run ^ (2^(bit + 1) - 1).
            found = tl.where((run & -run) == 2**bit, values, found)
    return found


@triton.jit
def exclusive_sums(values, run, PER_THREAD: tl.constexpr):
    """Return, for each value, the sum of all values before it in its row."""
    if PER_THREAD > 1:
        even, odd = tl.split(values)
        sums = exclusive_sums(even + odd, run, PER_THREAD // 2)
        sums = tl.join(sums, sums + even)
    else:
        sums = tl.zeros_like(values)
        for bit in tl.static_range(len(values.shape) - 1):
            other = exchange_floats(values, len(values.shape) - 1 - bit)
            sums += tl.where((run >> bit) & 1 == 1, other, 0.0)
            values += other
    return sums


@triton.jit
def binary_axes(rows):
    """Reshape `[ROWS, SIZE]` to `[ROWS, 2, 2, ...]`."""
    return tl.reshape(rows, [rows.shape[0]] + [2] * log2(rows.shape[1]))


@triton.jit
def run_numbers(SIZE: tl.constexpr, PER_THREAD: tl.constexpr):
    """Return the numbers of the runs of PER_THREAD neighbours, along their axes."""
    return tl.reshape(tl.arange(0, SIZE // PER_THREAD), [1] + [2] * log2(SIZE // PER_THREAD))


@triton.jit
def predecessors(rows, PER_THREAD: tl.constexpr):
    """Return each value's predecessor in its row `[ROWS, SIZE]`; arbitrary for the first value."""
    found = predecessor(binary_axes(rows), run_numbers(rows.shape[1], PER_THREAD), PER_THREAD)
    return tl.reshape(found, rows.shape)


@triton.jit
def potentials_of(x, x_before, y, y_before, count, PER_THREAD: tl.constexpr):
    """Return `sorted_potentials` from sorted rows `[ROWS, SIZE]` and their predecessors."""
    place = tl.arange(0, x.shape[1])[None, :]
    steps = (y_before + y) * (x_before - x) * 0.5
    steps = tl.where((place > 0) & (place < count), steps, 0.0)
    sums = exclusive_sums(binary_axes(steps), run_numbers(x.shape[1], PER_THREAD), PER_THREAD)
    return tl.reshape(sums, steps.shape) + steps


@triton.jit
def sorted_potentials(x_words, y_images, count, PER_THREAD: tl.constexpr, SORT_64: tl.constexpr):
    """Return potentials of sorted queries `[ROWS, SIZE]`: 0 first, arbitrary from `count` on."""
    x = image_values(sorted_images(x_words, x_words.shape[1], SORT_64))
    y = image_values(y_images)
    return potentials_of(
        x,
        predecessors(x, PER_THREAD),
        y,
        predecessors(y, PER_THREAD),
        count,
        PER_THREAD,
    )
