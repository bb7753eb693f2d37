"""The gradient through all updates of a head with its plan on chip: two products with E an update.

With A^t = exp(S + f^t + g^t), whose rows sum to 1, the adjoints of the updates are

    df^t = -A^t w^t,    dg^t = -(A^t)' df^t,    w^(t-1) = dg^t exp(g^t - g^(t-1)) m / n

(`tiled_gradient.through_updates`, which makes all exponentials of every product again). Here
E = exp(S + G - shift) is made once, exactly as in `launch`, and serves all products in which g^s
appears: dg^s and df^(s-1), with the scalings exp(f + shift) and exp(g - G) of the duals that the
forward pass kept, times adjoints, in two parts of float16.

Sums of a rounded E are wrong by what the updates back would amplify, most of all where adjoints
should cancel. So each product is divided by sums of the same E, which the matrix units yield at no
cost: A^s by its row sums, and A^(s-1) exp(g^s - g^(s-1)), of which df^(s-1) is made, by its column
sums. This also corrects duals that were rounded.

What must not happen is known before the launch, from the duals (`schedule`). Adjoints are signed
and may be of any size, but since rows of A^t sum to 1, |df^(s-1)| <= max |w^(s-1)| and
|dg^s| m / n <= exp(g^s - g^(s+1)) max |df^s|: one measured maximum gives powers of two that keep
the scaled adjoints of all further updates below 2^`TOP`. E is made again, and the maximum measured
again, where a g^s is further than 2^`REACH` from G, or where the bounds have grown by 2^`ROOM`. A
head that needs this at every update makes T plans, where the passes over tiles make 2 T - 1, so no
head needs another way. With bfloat16 inputs, heads whose duals or bounds go further than 2^`FAR`
take wide plans, in bfloat16: one or two of them.
"""

import ctypes
from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Duals, Launch
from asap_exp.ops.kernels.sinkhorn import tiled_gradient
from asap_exp.ops.kernels.sinkhorn.on_chip import launch as on_chip
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block, valid_tokens

REACH = 8.0
"""Most that g^s differs from the dual G of its plan, in units of log 2.

An entry may then count 2^16 times as much as in E, of which float16 keeps what is 2^-29 of a row's
largest precisely. adjoint.cu stores scalings in units for this reach.
"""

ROOM = 6.0
"""Growth of the bounds, in units of log 2, from which adjoints are measured again: what is 2^-25 of
a bound is lost."""

TOP = 14.0
"""Bound of scaled adjoints, in units of log 2: two below where float16 ends."""

WIDE_REACH, WIDE_ROOM = 50.0, 40.0
"""The same of wide plans, which hold E, scalings and adjoints in bfloat16, and whose powers of two
are those of the others: what is stored stays between 2^-110 and 2^56."""

FAR = 64.0
"""How far g^s, or the bounds, go in all, in units of log 2, for a head to take wide plans: it would
take five or more others."""


MOST_DUALS = 2**32
"""Duals of one side, of all heads and updates, from which the kernel could not count: 17 GB."""


def launch(p: Launch, grad_out: Tensor, duals: Duals, grads: tuple[Tensor, ...]) -> None:
    """Write the gradients of q, k, v and f^0."""
    tiled_gradient.through_all(p, grad_out, duals, grads, through_updates)


def through_updates(
    p: Launch, rows: Tensor, cols: Tensor, grad_col: Tensor, grad_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Write f^0's gradient, and return df^t `[B, H, T, N]` (0 at t = 0) and w^t `[B, H, T, M]`.

    As in `tiled_gradient`, which does it for `MOST_DUALS` or more: `rows` are f^0 .. f^T, `cols`
    g^0 .. g^T, `grad_col` is dg^T.
    """
    if max(rows.numel(), cols.numel()) >= MOST_DUALS:
        return tiled_gradient.through_updates(p, rows, cols, grad_col, grad_start)
    p = on_chip.aligned(p)
    argument, row_weights, col_weights, _ = problem(p, rows, cols, grad_col, grad_start)
    on_chip.run(on_chip.Variant.of(p, None, gradient=True), p, argument)
    return row_weights, col_weights


class Problem(on_chip.Inputs):
    """The inputs and results, as the kernel reads them; all but q, k and padding are contiguous."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("rows", "cols", "grad_col", "powers", "lowest")),
        *((name, ctypes.c_void_p) for name in ("row_weights", "col_weights", "grad_start")),
        ("log2_ratio", ctypes.c_float),
    ]


def problem(
    p: Launch, rows: Tensor, cols: Tensor, grad_col: Tensor, grad_start: Tensor
) -> tuple[Problem, Tensor, Tensor, tuple[Tensor, ...]]:
    """Return the inputs of a launch, df^t, w^t, and what else has to stay alive until it ends."""
    row_weights, col_weights = torch.empty_like(rows[:, :, 1:]), torch.empty_like(cols[:, :, 1:])
    powers, lowest = schedule(p, cols, col_weights)
    tensors = (
        rows, cols, grad_col, powers, lowest, row_weights, col_weights, grad_start
    )  # fmt: skip
    assert all(x.is_contiguous() for x in tensors)
    argument = Problem(*on_chip.inputs(p), *map(on_chip.address, tensors), p.log2_ratio)
    return argument, row_weights, col_weights, tensors


def schedule(p: Launch, cols: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the powers of two that scale adjoints, and where plans begin, `[B, H, T]` both.

    At s - 1, the first has the power for g^s. If a plan begins with g^s, the second has, at s - 1,
    the number of the last dual that it serves, negative if the plan is wide, and its own dual G is
    written to where w^(s-1) will lie, in `anchors` `[B, H, T, M]`. Else the second is not set.
    """
    batch, heads = p.q.shape[:2]
    powers = cols.new_empty(batch, heads, p.num_iters)
    lowest = cols.new_empty(batch, heads, p.num_iters, dtype=torch.int32)
    m_block = block(p.m)
    schedule_kernel[(p.programs,)](
        cols, p.padding, anchors, powers, lowest, heads, p.m, p.num_iters, p.log2_ratio,
        REACH=REACH, ROOM=ROOM, WIDE_REACH=WIDE_REACH, WIDE_ROOM=WIDE_ROOM, FAR=FAR, TOP=TOP,
        MAY_BE_WIDE=p.q.dtype == torch.bfloat16,
        BLOCK_M=m_block, HAS_PADDING=p.padding is not None,
        num_warps=max(1, m_block // 256), **EVERY_LAUNCH,
    )  # fmt: skip
    return powers, lowest


# fmt: off
@triton.jit
def schedule_kernel(
    cols, padding, anchors, powers, lowest, heads, m, num_iters, log2_ratio,
    REACH: tl.constexpr, ROOM: tl.constexpr, WIDE_REACH: tl.constexpr, WIDE_ROOM: tl.constexpr,
    FAR: tl.constexpr, TOP: tl.constexpr, MAY_BE_WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Decide from g^0 .. g^T which plans serve which updates, and how adjoints are scaled.

    One program per head. In units of log 2: `bound` is that of df^s, which is less than 1 when it
    has just been measured. For s = T, dg^T m / n takes its place, as if g^(T+1) was g^T.
    """
    head = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK_M)
    valid_j = valid_tokens(padding, head // heads, j, m, HAS_PADDING)
    cols += head * (num_iters + 1) * m
    anchors += head * num_iters * m
    powers += head * num_iters
    lowest += head * num_iters
    reach, room, sign = REACH, ROOM, 1
    if MAY_BE_WIDE:
        far = distance(cols, j, valid_j, m, num_iters) > FAR
        reach = tl.where(far, WIDE_REACH, REACH)
        room = tl.where(far, WIDE_ROOM, ROOM)
        sign = tl.where(far, -1, 1)
    # [BLOCK_M]
    low = tl.load(cols + num_iters * m + j, mask=valid_j, other=0.0)
    high = low
    bound = 1.0 - log2_ratio
    first = num_iters
    for back in range(num_iters):
        s = num_iters - back
        # Loaded again: a variable that takes over the first value of another, as `later` would take
        # over that of `g`, is a constant to Triton's compiler, which compares no more than that.
        later = tl.load(cols + tl.minimum(s + 1, num_iters) * m + j, mask=valid_j, other=0.0)
        g = tl.load(cols + s * m + j, mask=valid_j, other=0.0)
        earlier = tl.load(cols + (s - 1) * m + j, mask=valid_j, other=0.0)
        spread = tl.max(tl.maximum(high, g) - tl.minimum(low, g), axis=0)
        if (s < num_iters) & ((spread > 2 * reach) | (bound > room)):
            tl.store(anchors + (first - 1) * m + j, 0.5 * (low + high), mask=j < m)
            tl.store(lowest + first - 1, sign * (s + 1))
            first = s
            low, high = g, g
            bound = 1.0
        low, high = tl.minimum(low, g), tl.maximum(high, g)
        of_g = bound + tl.maximum(tl.max(g - later, axis=0), 0.0) + tl.maximum(log2_ratio, 0.0)
        tl.store(powers + s - 1, tl.exp2(TOP - REACH - tl.ceil(of_g)))
        bound += tl.max(2 * g - later - earlier, axis=0)
    tl.store(anchors + (first - 1) * m + j, 0.5 * (low + high), mask=j < m)
    tl.store(lowest + first - 1, sign)


@triton.jit
def distance(cols, j, valid_j, m, num_iters):
    """Return how far g^1 .. g^T of one head move, or the bounds of `schedule_kernel` if further."""
    low = tl.load(cols + num_iters * m + j, mask=valid_j, other=0.0)
    high = low
    total = 0.0
    for back in range(num_iters - 1):
        s = num_iters - back
        later = tl.load(cols + tl.minimum(s + 1, num_iters) * m + j, mask=valid_j, other=0.0)
        g = tl.load(cols + s * m + j, mask=valid_j, other=0.0)
        earlier = tl.load(cols + (s - 1) * m + j, mask=valid_j, other=0.0)
        low, high = tl.minimum(low, earlier), tl.maximum(high, earlier)
        total += tl.maximum(tl.max(2 * g - later - earlier, axis=0), 0.0)
    return tl.maximum(tl.max(high - low, axis=0), total)
