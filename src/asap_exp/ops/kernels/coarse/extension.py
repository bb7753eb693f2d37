"""The extension of a subset's dual to all tokens of the other side, and its gradient.

With x all queries and y the subset's keys, or x all keys and y the subset's queries,

    result_x = log2_ratio - LSE_y(S_xy + dual_y),   P_xy = exp(S + dual_y + result_x) n' / n,

where log w is part of `dual_y` and P's rows sum to 1. For a gradient r of the result, dS = -P r.
Letters: see `kernels.tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.coarse.subset import subset_strides
from asap_exp.ops.kernels.launch import Launch, head_strides, strides
from asap_exp.ops.kernels.sinkhorn.tiled import (
    finite_shift,
    head_and_tokens,
    plan_tile,
    rescale,
    running_shift,
)
from asap_exp.ops.kernels.sinkhorn.tiled_bf16 import PADDED_TO, store_parts
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    IN_LOG2,
    block,
    fma_bias,
    load_tile,
    product,
    store_tile,
    valid_tokens,
)
from asap_exp.ops.subsets import Subset

BLOCK_TOKENS, BLOCK_SUBSET = 64, 64
"""Tokens that meet tokens of the subset at once."""

PROGRAM_TOKENS = 256
"""Tokens of one program, which reads the subset once, if there are many programs."""

GRADIENT_TOKENS = 64
"""Tokens that meet tokens of the subset at once in the gradient."""


# fmt: off
@triton.jit
def dual_and_tokens(
    dual_y, tokens, y, first, count, y_n,
    D: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
):
    # fmt: on
    """Return the duals of BLOCK_Y tokens of the subset, -inf where absent, and the tokens."""
    c = first + tl.arange(0, BLOCK_Y)
    fy = tl.load(dual_y + c, mask=c < count, other=float("-inf"))
    present = fy > float("-inf")
    j = tl.load(tokens + c, mask=present, other=0)
    # [BLOCK_Y, BLOCK_D]
    return fy, load_tile(y, j, present, y_n, D, BLOCK_D)


# fmt: off
@triton.jit
def add_tile(
    shift, total, x_tile, y_tile, fy, to_log2,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, X_IS_QUERY: tl.constexpr,
):
    # fmt: on
    """Add a tile of the subset to the sums of exp(S + dual_y + shift); return both."""
    # [BLOCK_X, BLOCK_Y]
    S = product(x_tile, tl.trans(y_tile), OPERAND, PRECISION)
    lower = running_shift(shift, fma_bias(S, to_log2, fy[None, :]))
    total *= rescale(shift, lower)
    A = plan_tile(S, to_log2, finite_shift(lower), fy, X_IS_QUERY)
    return lower, total + tl.sum(A, axis=1)


# fmt: off
@triton.jit
def extension_kernel(
    x, y, tokens, dual_y, padding, result, parts,
    x_b, x_h, x_n, y_b, y_h, y_n, t_b, t_h, dual_y_stride, result_stride,
    heads, num_x, count, padded_x, to_log2, log2_ratio,
    D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, X_IS_QUERY: tl.constexpr,
    HAS_PADDING: tl.constexpr, NATURAL: tl.constexpr, STORE_PARTS: tl.constexpr,
    TOKENS: tl.constexpr, ONE_TILE: tl.constexpr,
):
    # fmt: on
    """Store the dual of all x, 0 where padded; with STORE_PARTS also as `tiled_bf16` reads it.

    The result is in units of log 2, or with NATURAL in natural ones. There is one program per
    TOKENS tokens; with ONE_TILE the whole subset is one tile.
    """
    length = padded_x if STORE_PARTS else num_x
    blocks = tl.cdiv(length, TOKENS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * TOKENS
    b, h = head // heads, head % heads
    x += b * x_b + h * x_h
    y += b * y_b + h * y_h
    tokens += b * t_b + h * t_h
    dual_y += head * dual_y_stride
    if ONE_TILE:
        fy, y_tile = dual_and_tokens(dual_y, tokens, y, 0, count, y_n, D, BLOCK_Y, BLOCK_D)
    for first_x in range(start, min(start + TOKENS, length), BLOCK_X):
        i = first_x + tl.arange(0, BLOCK_X)
        valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
        # [BLOCK_X, BLOCK_D]
        x_tile = load_tile(x, i, valid_i, x_n, D, BLOCK_D)
        # [BLOCK_X]
        shift = tl.full([BLOCK_X], float("inf"), tl.float32)
        total = tl.zeros([BLOCK_X], tl.float32)
        if ONE_TILE:
            shift, total = add_tile(
                shift, total, x_tile, y_tile, fy, to_log2, OPERAND, PRECISION, X_IS_QUERY
            )
        else:
            for first in range(0, count, BLOCK_Y):
                fy, y_tile = dual_and_tokens(
                    dual_y, tokens, y, first, count, y_n, D, BLOCK_Y, BLOCK_D
                )
                shift, total = add_tile(
                    shift, total, x_tile, y_tile, fy, to_log2, OPERAND, PRECISION, X_IS_QUERY
                )
        dual = tl.where(valid_i, shift - tl.log2(total) + log2_ratio, 0.0)
        if STORE_PARTS:
            store_parts(parts + head * 3 * padded_x, dual, i, valid_i, padded_x, to_log2)
        if NATURAL:
            dual = dual / IN_LOG2
        tl.store(result + head * result_stride + i, dual, mask=i < num_x)


# fmt: off
@triton.jit
def token_gradient_kernel(
    x, y, tokens, dual_x, dual_y, grad, padding, grad_x,
    x_b, x_h, x_n, y_b, y_h, y_n, t_b, t_h, gx_b, gx_h, gx_n,
    dual_x_stride, dual_y_stride, grad_stride,
    heads, num_x, count, to_log2, log2_ratio, slope,
    D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, X_IS_QUERY: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Store grad_x = slope sum_y dS_xy y for all x; `dual_x` is the extension's result."""
    head, i = head_and_tokens(num_x, BLOCK_X)
    b, h = head // heads, head % heads
    valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
    # [BLOCK_X, BLOCK_D]
    x_tile = load_tile(x + b * x_b + h * x_h, i, valid_i, x_n, D, BLOCK_D)
    y += b * y_b + h * y_h
    tokens += b * t_b + h * t_h
    dual_y += head * dual_y_stride
    fx = tl.load(dual_x + head * dual_x_stride + i, mask=valid_i, other=float("-inf"))
    r = tl.load(grad + head * grad_stride + i, mask=valid_i, other=0.0)
    # [BLOCK_X, BLOCK_D]
    sums = tl.zeros([BLOCK_X, BLOCK_D], tl.float32)
    for first in range(0, count, BLOCK_Y):
        fy, y_tile = dual_and_tokens(
            dual_y, tokens, y, first, count, y_n, D, BLOCK_Y, BLOCK_D
        )
        # [BLOCK_X, BLOCK_Y]
        S = product(x_tile, tl.trans(y_tile), OPERAND, PRECISION)
        P = plan_tile(S, to_log2, fx - log2_ratio, fy, X_IS_QUERY)
        sums += product(-r[:, None] * P, y_tile, OPERAND, PRECISION)
    store_tile(
        grad_x + b * gx_b + h * gx_h, i, i < num_x, gx_n, sums * slope, D, BLOCK_D
    )


# fmt: off
@triton.jit
def subset_gradient_kernel(
    x, y, tokens, dual_x, dual_y, grad, padding, grad_dual, grad_y,
    x_b, x_h, x_n, y_b, y_h, y_n, t_b, t_h,
    dual_x_stride, dual_y_stride, grad_stride,
    heads, num_x, count, to_log2, log2_ratio, slope,
    D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, X_IS_QUERY: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Store the gradients of the subset's dual and, `[C, D]` in float32, of its tokens.

    There is one program per block of BLOCK_Y tokens of the subset.
    """
    head, c = head_and_tokens(count, BLOCK_Y)
    b, h = head // heads, head % heads
    fy = tl.load(dual_y + head * dual_y_stride + c, mask=c < count, other=float("-inf"))
    present = fy > float("-inf")
    j = tl.load(tokens + b * t_b + h * t_h + c, mask=present, other=0)
    # [BLOCK_Y, BLOCK_D]
    y_tile = load_tile(y + b * y_b + h * y_h, j, present, y_n, D, BLOCK_D)
    x += b * x_b + h * x_h
    # [BLOCK_Y]
    total = tl.zeros([BLOCK_Y], tl.float32)
    # [BLOCK_Y, BLOCK_D]
    sums = tl.zeros([BLOCK_Y, BLOCK_D], tl.float32)
    for first in range(0, num_x, BLOCK_X):
        i = first + tl.arange(0, BLOCK_X)
        valid_i = valid_tokens(padding, b, i, num_x, HAS_PADDING)
        # [BLOCK_X, BLOCK_D]
        x_tile = load_tile(x, i, valid_i, x_n, D, BLOCK_D)
        fx = tl.load(dual_x + head * dual_x_stride + i, mask=valid_i, other=float("-inf"))
        r = tl.load(grad + head * grad_stride + i, mask=valid_i, other=0.0)
        # [BLOCK_Y, BLOCK_X]
        S = product(y_tile, tl.trans(x_tile), OPERAND, PRECISION)
        dS = -r[None, :] * plan_tile(S, to_log2, fy, fx - log2_ratio, not X_IS_QUERY)
        total += tl.sum(dS, axis=1)
        sums += product(dS, x_tile, OPERAND, PRECISION)
    d = tl.arange(0, BLOCK_D)
    tl.store(grad_dual + head * count + c, total, mask=c < count)
    tl.store(
        grad_y + (head * count + c[:, None]) * D + d[None, :],
        sums * slope,
        mask=(c < count)[:, None] & (d < D)[None, :],
    )


class Sides:
    """All tokens `x` of one side, and those of the other side `y` that are in `subset`."""

    def __init__(self, p: Launch, subset: Subset, *, of_queries: bool) -> None:
        self.x, self.y = (p.q, p.k) if of_queries else (p.k, p.q)
        self.subset, self.of_queries = subset, of_queries
        self.num_x, self.count = self.x.shape[2], subset.tokens.shape[2]
        self.log2_ratio = 0.0 if of_queries else p.log2_ratio
        self.tokens_strides = subset_strides(subset)[:2]


def launch(
    p: Launch,
    sides: Sides,
    dual: Tensor,
    result: Tensor,
    parts: Tensor | None = None,
    *,
    natural: bool = False,
) -> None:
    """Write the dual of all x from the last `dual` of the subset, with its parts if given."""
    padded = triton.cdiv(sides.num_x, PADDED_TO) * PADDED_TO
    tokens = sides.num_x if parts is None else padded
    one_tile = sides.count <= BLOCK_SUBSET
    a_program = BLOCK_TOKENS if p.few_blocks else PROGRAM_TOKENS
    extension_kernel[(p.programs * triton.cdiv(tokens, a_program),)](
        sides.x, sides.y, sides.subset.tokens, dual, p.padding, result, parts,
        *strides(sides.x, sides.y), *sides.tokens_strides, *head_strides(dual, result),
        p.heads, sides.num_x, sides.count, padded, p.to_log2, sides.log2_ratio,
        **p.logits, BLOCK_X=BLOCK_TOKENS, BLOCK_Y=min(block(sides.count), BLOCK_SUBSET),
        X_IS_QUERY=sides.of_queries, NATURAL=natural, STORE_PARTS=parts is not None,
        TOKENS=a_program, ONE_TILE=one_tile, num_warps=4, **EVERY_LAUNCH,
    )  # fmt: skip


def launch_gradient(
    p: Launch, sides: Sides, dual: Tensor, result: Tensor, grad: Tensor, grad_x: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient of all x; return those of `dual` `[B, H, C]` and of y `[B, H, C, D]`.

    The duals are in units of log 2, and the gradients those of natural duals.
    """
    of_dual = torch.empty_like(dual, memory_format=torch.contiguous_format)
    of_tokens = dual.new_empty(*dual.shape, p.q.shape[3])
    block_y = min(block(sides.count), BLOCK_SUBSET)
    inputs = sides.x, sides.y, sides.subset.tokens, result, dual, grad, p.padding
    numbers = p.heads, sides.num_x, sides.count, p.to_log2, sides.log2_ratio, p.slope
    constants = p.logits | {"X_IS_QUERY": sides.of_queries, "num_warps": 4}
    token_gradient_kernel[(p.programs * triton.cdiv(sides.num_x, GRADIENT_TOKENS),)](
        *inputs, grad_x, *strides(sides.x, sides.y), *sides.tokens_strides, *strides(grad_x),
        *head_strides(result, dual, grad), *numbers,
        BLOCK_X=GRADIENT_TOKENS, BLOCK_Y=block_y, **constants, **EVERY_LAUNCH,
    )  # fmt: skip
    subset_gradient_kernel[(p.programs * triton.cdiv(sides.count, block_y),)](
        *inputs, of_dual, of_tokens, *strides(sides.x, sides.y), *sides.tokens_strides,
        *head_strides(result, dual, grad), *numbers,
        BLOCK_X=GRADIENT_TOKENS, BLOCK_Y=block_y, **constants, **EVERY_LAUNCH,
    )  # fmt: skip
    return of_dual, of_tokens
