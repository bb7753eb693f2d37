"""Loads, products and rounding that all kernels share, and the options of every launch.

Inside the kernels, logits and duals are in units of log 2, so that every exponential is one exp2. A
padded or absent token has a dual of -inf; its logit is finite, because its q or k loads as 0.

Letters in all kernels: B batch, H heads, n or N queries, m or M keys, D channels of q and k,
V_WIDTH channels of v. BLOCK_N, BLOCK_M, BLOCK_D and BLOCK_V are the sides of tiles. f and g are the
duals of queries and keys, a and b the scalings exp2(f^t - f) and exp2(g^t - g). The strides of a
pointer have the suffixes _b (sample), _h (head) and _n (token). A comment such as `# [BLOCK_N,
BLOCK_M]` gives the shape of the tile below it.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""True if kernels run in Triton's interpreter, on the CPU, for tests."""

EVERY_LAUNCH = {"enable_fp_fusion": True}
"""Options of every launch. A multiply-add is rounded once, whatever Triton's default: the recorded
results rely on it. Where rounding must agree with other kernels, the code uses `tl.fma` anyway.
"""

BY_INTERPRETER = tl.constexpr(INTERPRETED)

LOG2_E = 1.4426950408889634
IN_LOG2 = tl.constexpr(LOG2_E)

_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


@triton.jit
def valid_tokens(padding, sample, index, count, HAS_PADDING: tl.constexpr):
    """Return, for each `index`, whether it is below `count` and not padded in this sample."""
    valid = index < count
    if HAS_PADDING:
        valid = valid & (tl.load(padding + sample * count + index, mask=valid, other=1) == 0)
    return valid


@triton.jit
def load_tile(base, index, valid, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows `index` of a `[tokens, WIDTH]` matrix, `[len(index), BLOCK]`; 0 if not valid."""
    d = tl.arange(0, BLOCK)
    return tl.load(
        base + index[:, None].to(tl.int64) * stride + d[None, :],
        mask=valid[:, None] & (d < WIDTH)[None, :],
        other=0.0,
    )


@triton.jit
def store_tile(base, index, valid, stride, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store a tile as rows `index` of a `[tokens, WIDTH]` matrix, where valid."""
    d = tl.arange(0, BLOCK)
    tl.store(
        base + index[:, None].to(tl.int64) * stride + d[None, :],
        tile.to(base.dtype.element_ty),
        mask=valid[:, None] & (d < WIDTH)[None, :],
    )


@triton.jit
def product(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply a and b in float32, after rounding both to OPERAND."""
    a, b = a.to(OPERAND), b.to(OPERAND)
    if BY_INTERPRETER:  # its product of bfloat16 tiles is wrong
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


# fmt: off
@triton.jit
def product_in_chunks(
    x, i, valid_i, x_stride, y, j, valid_j, y_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Return rows `i` of x times rows `j` of y, `[len(i), len(j)]`, from CHUNK columns at a time.

    Without the matrix units, whole rows of float32 tiles would not stay in registers. The sums are
    in the order of `product`.
    """
    S = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    for first in tl.static_range(0, BLOCK, CHUNK):
        d = first + tl.arange(0, CHUNK)
        x_tile = tl.load(
            x + i[:, None].to(tl.int64) * x_stride + d[None, :],
            mask=valid_i[:, None] & (d < WIDTH)[None, :],
            other=0.0,
        )
        y_tile = tl.load(
            y + j[None, :].to(tl.int64) * y_stride + d[:, None],
            mask=valid_j[None, :] & (d < WIDTH)[:, None],
            other=0.0,
        )
        S = tl.dot(x_tile, y_tile, S, input_precision=PRECISION)
    return S


@triton.jit
def concat_rows(a, b):
    """Stack the rows of a above the rows of b, so that one pass, with its waits, serves both."""
    both = tl.permute(tl.join(a, b), (2, 0, 1))
    return tl.reshape(both, [2 * a.shape[0], a.shape[1]])


@triton.jit
def split_rows(both):
    """Return the upper and the lower half of the rows."""
    halves = tl.reshape(both, [2, both.shape[0] // 2, both.shape[1]])
    return tl.split(tl.permute(halves, (1, 2, 0)))


@triton.jit
def log2_plan(S, to_log2, g, f):
    """Compute log2 A = S to_log2 + g + f, with the same rounding whichever side is anchored.

    The gradient is exact up to rounding only if all passes see the same logits: for logits of
    several hundred, a different last bit costs two digits of the gradient.
    """
    return fma_bias(S, to_log2, g) + f


@triton.jit
def log2_scaling(scaling, valid):
    """Return log2 of a scaling, 0 where not valid."""
    return tl.where(valid, tl.log2(scaling), 0.0)


@triton.jit
def far_from_one(scaling, valid):
    """Return whether some valid scaling is beyond 2^24 or below 2^-24.

    The bits of a positive float32 are a piecewise linear logarithm, at no special function's cost.
    """
    bits = scaling.to(tl.int32, bitcast=True) - 0x3F800000
    return tl.max(tl.where(valid, tl.abs(bits), 0)) > 24 << 23


@triton.jit
def fma_bias(S, to_log2, dual):
    """Compute S to_log2 + dual with one rounding."""
    return tl.fma(S, tl.full(S.shape, 1.0, tl.float32) * to_log2, tl.broadcast_to(dual, S.shape))


def operand(x: Tensor) -> tl.dtype:
    """Return the dtype in which the matrix units read `x`."""
    return _TRITON_DTYPES[x.dtype]


def unit_stride(x: Tensor) -> Tensor:
    """Return `x` with a contiguous last dimension, as the kernels require."""
    return x if x.stride(-1) == 1 else x.contiguous()


def mask_bytes(padding: Tensor | None) -> Tensor | None:
    """Return a mask as the kernels read it: one byte per token."""
    return None if padding is None else padding.contiguous().view(torch.uint8)


def block(size: int, minimum: int = 16) -> int:
    """Return the smallest power of two >= `size`; the matrix units need at least 16."""
    return max(minimum, triton.next_power_of_2(size))
