"""The farthest points of a sample and their Voronoi cells in one launch, one program per head.

Token after token is taken that is farthest from those before. Each further one lowers the
distances of some tokens, which are its cell until another is nearer; so the cells cost nothing.
Vectors of 16 bits stay on chip, and distances from a token come from one product; others are read
again for every token that is taken, some channels at a time. Letters: see `kernels.tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    block,
    load_tile,
    mask_bytes,
    product,
    unit_stride,
    valid_tokens,
)

TOKENS = 4096
"""Longest sample whose distances fit in registers."""

CHANNELS = 16
"""Channels that are read at once."""

MOST_ON_CHIP = 1024 * 64
"""Most numbers of 16 bits that a program keeps on chip."""


# fmt: off
@triton.jit
def squared_distances(
    x, i, valid_i, point, x_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):
    # fmt: on
    """Return the squared distances of the tokens `i` from the one at `point`, `[BLOCK_N]`."""
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in tl.static_range(0, BLOCK_D, CHUNK):
        d = first + tl.arange(0, CHUNK)
        here = tl.load(point + d, mask=d < D, other=0.0).to(tl.float32)
        # [BLOCK_N, CHUNK]
        apart = tl.load(
            x + i[:, None].to(tl.int64) * x_n + d[None, :],
            mask=valid_i[:, None] & (d < D)[None, :],
            other=0.0,
        ).to(tl.float32)
        apart -= here[None, :]
        total += tl.sum(apart * apart, axis=1)
    return total


@triton.jit
def distances_by_product(x_tile, norms, point, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the same from a tile of 16-bit vectors and their squared norms.

    What is within the rounding of the norms is 0, so that equal vectors are.
    """
    d = tl.arange(0, BLOCK_D)
    here = tl.load(point + d, mask=d < D, other=0.0)
    norm = tl.sum(here.to(tl.float32) * here.to(tl.float32))
    # [BLOCK_N, 16], each column the same
    inner = product(x_tile, tl.broadcast_to(here[:, None], (BLOCK_D, 16)), here.dtype, "ieee")
    sums = norms + norm
    apart = sums - 2 * tl.max(inner, 1)
    return tl.where(apart > 1e-6 * sums, apart, 0.0)


# fmt: off
@triton.jit
def farthest_kernel(
    x, padding, zero, tokens, sizes, x_b, x_h, x_n, heads, n, count,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr, HAS_PADDING: tl.constexpr, ON_CHIP: tl.constexpr,
):
    # fmt: on
    """Store the indices of `count` tokens, and how many are nearest to each of them.

    The first is the one of the largest norm; without ON_CHIP `zero` points to
    D zeros. Of equals the first counts.
    """
    head = tl.program_id(0).to(tl.int64)
    b, h = head // heads, head % heads
    x += b * x_b + h * x_h
    tokens += head * count
    i = tl.arange(0, BLOCK_N)
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    if ON_CHIP:
        # [BLOCK_N, BLOCK_D]
        x_tile = load_tile(x, i, valid_i, x_n, D, BLOCK_D)
        norms = tl.sum(x_tile.to(tl.float32) * x_tile.to(tl.float32), 1)
    else:
        norms = squared_distances(x, i, valid_i, zero, x_n, D, BLOCK_D, BLOCK_N, CHUNK)
    index = tl.argmax(tl.where(valid_i, norms, -1.0), axis=0)
    # [BLOCK_N]
    distance = tl.where(valid_i, float("inf"), float("-inf"))
    # [BLOCK_N]
    cell = tl.full([BLOCK_N], BLOCK_C, tl.int32)
    for c in range(count):
        tl.store(tokens + c, index.to(tl.int64))
        point = x + index.to(tl.int64) * x_n
        if ON_CHIP:
            found = distances_by_product(x_tile, norms, point, D, BLOCK_D)
        else:
            found = squared_distances(x, i, valid_i, point, x_n, D, BLOCK_D, BLOCK_N, CHUNK)
        nearer = found < distance
        cell = tl.where(nearer, c, cell)
        distance = tl.where(nearer, found, distance)
        distance = tl.where(i == index, float("-inf"), distance)
        index = tl.argmax(distance, axis=0)
    c = tl.arange(0, 2 * BLOCK_C)
    number = tl.histogram(cell, 2 * BLOCK_C)
    tl.store(sizes + head * count + c, number.to(tl.float32), mask=c < count)


def takes(x: Tensor) -> bool:
    """Return whether the kernel takes the vectors."""
    dtypes = torch.float16, torch.bfloat16, torch.float32
    return x.shape[2] <= TOKENS and x.shape[3] <= 128 and x.dtype in dtypes


@torch.library.custom_op("asap_exp::farthest_tokens", mutates_args=())
def farthest_tokens(x: Tensor, padding: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of `count` tokens of x `[B, H, N, D]`, and the sizes of their cells.

    Both are `[B, H, count]`. `padding` is `[B, N]`, true at absent tokens.
    """
    tokens, sizes = _results(x, count)
    if tokens.numel():
        x = unit_stride(x)
        batch, heads, n, d = x.shape
        on_chip = x.element_size() == 2 and block(n) * block(d) <= MOST_ON_CHIP
        zero = None if on_chip else x.new_zeros(block(d))
        with torch.cuda.device_of(x):
            farthest_kernel[(batch * heads,)](
                x, mask_bytes(padding), zero, tokens, sizes, *x.stride()[:3],
                heads, n, count, D=d, BLOCK_D=block(d), BLOCK_N=block(n), BLOCK_C=block(count),
                CHUNK=min(block(d), CHANNELS), HAS_PADDING=padding is not None,
                ON_CHIP=on_chip,
                num_warps=min(max(block(n) // 128, 2), 8), **EVERY_LAUNCH,
            )  # fmt: skip
    return tokens, sizes


@farthest_tokens.register_fake
def _(x: Tensor, padding: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    return _results(x, count)


def _results(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = *x.shape[:2], count
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape, dtype=torch.float32)
