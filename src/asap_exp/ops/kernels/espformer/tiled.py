"""Sums over the ranks of two sorts, tile by tile, for any number of tokens.

With P the sort of one side and R that of the other (`ops.reference.espformer`), all products with a
plan P^T R of a slice are matrix products over ranks, and each tile of P and R is made where it is
needed, from the sorted and the unsorted coordinates and the inverse sums of its rows. Letters: see
`kernels.tiles`; L slices, r ranks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.espformer.sorts import (
    SLOPE,
    STAGES,
    Side,
    Sorts,
    ranks_of,
    sort_entries,
    tokens_of,
)
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block, product, valid_tokens


# fmt: off
@triton.jit
def rank_kernel(
    left_s, left_ranked, left_order, left_inverse,
    right_s, right_ranked, right_order, right_inverse,
    padding, matrix, other, matrix_factor, other_factor, weight,
    scale, per_rank, result, grad_s,
    matrix_h, matrix_i, matrix_j, other_h, other_i, other_j,
    heads, slices, n, all_slices, sharpness,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
    SKIPS: tl.constexpr, COMBINES: tl.constexpr, GRADIENT: tl.constexpr,
    HARD: tl.constexpr,
):
    # fmt: on
    """Multiply the left sort with a matrix, row by row, and each row with the right soft sort's.

    With Q = P M `[ranks, N]` of a slice, `result` gets sum_j Q[r, j] R[r, j] of the columns of this
    program. With GRADIENT, Q times `scale` is the gradient of R: `result` gets that of the sorted
    coordinates, and `grad_s` that of the unsorted ones. With COMBINES, M is a combination of two
    matrices for each slice. With SKIPS, slices without weight are left out.
    """
    tiles = tl.cdiv(n, BLOCK_J)
    tile = tl.program_id(0) % tiles
    slice_ = (tl.program_id(0) // tiles).to(tl.int64)
    head = slice_ // slices
    row = slice_ * n
    b = head // heads
    j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
    valid_j = valid_tokens(padding, b, j, n, HAS_PADDING)
    s_j = tokens_of(right_s, row, j, valid_j, sharpness)
    result += tile.to(tl.int64) * all_slices * n + row
    matrix += head * matrix_h
    other += head * other_h
    ranks = n
    if SKIPS:
        ranks = tl.where(tl.load(weight + slice_) != 0.0, n, 0)
    if COMBINES:
        of_matrix, of_other = tl.load(matrix_factor + slice_), tl.load(other_factor + slice_)
    if GRADIENT:
        size = tl.load(scale + slice_)
    # [BLOCK_J]
    grad_j = tl.zeros([BLOCK_J], tl.float32)
    for first_r in range(0, ranks, BLOCK_R):
        r = first_r + tl.arange(0, BLOCK_R)
        t, token, inverse_r = ranks_of(left_ranked, left_order, left_inverse, row, r, n)
        # [BLOCK_R, BLOCK_J]
        Q = tl.zeros([BLOCK_R, BLOCK_J], tl.float32)
        for first_i in range(0, n, BLOCK_I):
            i = first_i + tl.arange(0, BLOCK_I)
            valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
            s_i = tokens_of(left_s, row, i, valid_i, sharpness)
            # [BLOCK_R, BLOCK_I]
            P = sort_entries(
                t[:, None], s_i[None, :], inverse_r[:, None], token[:, None], i[None, :],
                sharpness, HARD,
            )  # fmt: skip
            # [BLOCK_I, BLOCK_J]
            inside = (i < n)[:, None] & (j < n)[None, :]
            place = i[:, None] * matrix_i + j[None, :] * matrix_j
            M = tl.load(matrix + place, mask=inside, other=0.0)
            if COMBINES:
                place = i[:, None] * other_i + j[None, :] * other_j
                second = tl.load(other + place, mask=inside, other=0.0)
                M = of_matrix * M.to(tl.float32) + of_other * second.to(tl.float32)
            Q += product(P, M, OPERAND, PRECISION)
        u, _, inverse_r = ranks_of(right_ranked, right_order, right_inverse, row, r, n)
        # [BLOCK_R, BLOCK_J]
        R = sort_entries(u[:, None], s_j[None, :], inverse_r[:, None], -1, -1, sharpness, False)
        if GRADIENT:
            inner = tl.load(per_rank + row + r, mask=r < n, other=0.0)
            R = R * (Q * size - inner[:, None]) * (u[:, None] - s_j[None, :])
            grad_j += tl.sum(R, axis=0)
            tl.store(result + r, tl.sum(R, axis=1) * (-SLOPE * sharpness), mask=r < n)
        else:
            tl.store(result + r, tl.sum(Q * R, axis=1), mask=r < n)
    if GRADIENT:
        tl.store(grad_s + row + j, grad_j * (SLOPE * sharpness), mask=j < n)


# fmt: off
@triton.jit
def mixture_kernel(
    left_s, left_ranked, left_order, left_inverse,
    right_s, right_ranked, right_order, right_inverse,
    padding, weight, scale, out,
    heads, slices, n, sharpness,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
    HARD: tl.constexpr,
):
    # fmt: on
    """Write a tile of `scale` sum_l weight_l P_l^T R_l; slices of weight 0 are left out."""
    tiles = tl.cdiv(n, BLOCK_J)
    program = tl.program_id(0)
    head = (program // (tiles * tl.cdiv(n, BLOCK_I))).to(tl.int64)
    i = (program // tiles % tl.cdiv(n, BLOCK_I)) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = program % tiles * BLOCK_J + tl.arange(0, BLOCK_J)
    b = head // heads
    valid_i = valid_tokens(padding, b, i, n, HAS_PADDING)
    valid_j = valid_tokens(padding, b, j, n, HAS_PADDING)
    # [BLOCK_I, BLOCK_J]
    A = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for number in range(slices):
        slice_ = head * slices + number
        row = slice_ * n
        w = tl.load(weight + slice_)
        s_i = tokens_of(left_s, row, i, valid_i, sharpness)
        s_j = tokens_of(right_s, row, j, valid_j, sharpness)
        for first in range(0, tl.where(w != 0.0, n, 0), BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            t, token, inverse_r = ranks_of(left_ranked, left_order, left_inverse, row, r, n)
            # [BLOCK_I, BLOCK_R]
            P = w * sort_entries(
                t[None, :], s_i[:, None], inverse_r[None, :], token[None, :], i[:, None],
                sharpness, HARD,
            )  # fmt: skip
            u, token, inverse_r = ranks_of(right_ranked, right_order, right_inverse, row, r, n)
            # [BLOCK_R, BLOCK_J]
            R = sort_entries(
                u[:, None], s_j[None, :], inverse_r[:, None], token[:, None], j[None, :],
                sharpness, HARD,
            )  # fmt: skip
            A += product(P, R, OPERAND, PRECISION)
    A *= tl.load(scale + head)
    place = head * n * n + i[:, None].to(tl.int64) * n + j[None, :]
    inside = (i < n)[:, None] & (j < n)[None, :]
    tl.store(out + place, A, mask=inside)


def rank_tile(n: int, sorts: Sorts) -> tuple[int, int, int]:
    """Return the side of tiles, how much of a sum is made at a time, and warps."""
    if n <= 64:
        return block(n), block(min(n, 32)), 4
    if sorts.operand == tl.float32 or triton.cdiv(n, 64) % 2:
        return 64, 32, 4
    return 128, 32, 8


def sums_by_rank(
    left: Side,
    right: Side,
    matrix: Tensor,
    sorts: Sorts,
    *,
    weight: Tensor | None = None,
    other: Tensor | None = None,
    factors: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return sum_ij P[r, i] M[i, j] R[r, j] `[B, H, L, N]`; 0 for slices of weight 0.

    M is `matrix` `[B, H, N, N]`, or with `factors` `[B, H, L]` a combination with `other`. R is
    soft, whatever P is; of two hard sorts, see `picked_by_rank`.
    """
    return _rank_launch(left, right, matrix, other, factors, weight, sorts)[0]


def picked_by_rank(left: Side, right: Side, matrix: Tensor) -> Tensor:
    """Return sum_ij P[r, i] M[i, j] R[r, j] `[B, H, L, N]` of hard sorts: an entry of M each."""
    place = left.order * matrix.shape[3] + right.order
    picked = matrix.flatten(2).gather(-1, place.flatten(2)).view_as(left.ranked)
    return picked.masked_fill(left.ranked == float("-inf"), 0.0)


def gradient_of_right(
    left: Side,
    right: Side,
    matrix: Tensor,
    other: Tensor,
    factors: tuple[Tensor, Tensor],
    scale: Tensor,
    per_rank: Tensor,
    weight: Tensor,
    sorts: Sorts,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the sorted and of the unsorted coordinates of the right side.

    The gradient of R is `scale` `[B, H, L]` times P M; `per_rank` are its sums over a row of R.
    """
    return _rank_launch(
        left, right, matrix, other, factors, weight, sorts, scale=scale, per_rank=per_rank
    )


def _rank_launch(
    left: Side,
    right: Side,
    matrix: Tensor,
    other: Tensor | None,
    factors: tuple[Tensor, Tensor] | None,
    weight: Tensor | None,
    sorts: Sorts,
    *,
    scale: Tensor | None = None,
    per_rank: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch, heads, slices, n = left.s.shape
    side, step, warps = rank_tile(n, sorts)
    tiles = triton.cdiv(n, side)
    shape = (tiles, batch, heads, slices, n)
    # The kernel writes nothing for slices without weight.
    result = left.s.new_empty(shape) if weight is None else left.s.new_zeros(shape)
    grad_s = torch.empty_like(right.s) if scale is not None else result
    second = matrix if other is None else other
    rank_kernel[(batch * heads * slices * tiles,)](
        *left, *right, sorts.padding, matrix, second, *(factors or (None, None)), weight,
        scale, per_rank, result, grad_s,
        *matrix.stride()[1:], *second.stride()[1:],
        heads, slices, n, batch * heads * slices, sorts.sharpness,
        **sorts.constants, BLOCK_R=side, BLOCK_I=step, BLOCK_J=side,
        SKIPS=weight is not None, COMBINES=factors is not None, GRADIENT=scale is not None,
        HARD=sorts.hard,
        num_warps=warps, num_stages=STAGES, **EVERY_LAUNCH,
    )  # fmt: skip
    return (result[0] if tiles == 1 else result.sum(dim=0)), grad_s


def mixture(left: Side, right: Side, weight: Tensor, sorts: Sorts) -> Tensor:
    """Return sum_l weight_l P_l^T R_l `[B, H, N, N]`; `weight` `[B, H, L]` may be negative."""
    batch, heads, slices, n = left.s.shape
    out = left.s.new_empty(batch, heads, n, n)
    side, step, warps = rank_tile(n, sorts)
    size = weight.abs().amax(dim=-1)
    share = weight / torch.where(size > 0, size, 1.0)[..., None]
    mixture_kernel[(batch * heads * triton.cdiv(n, side) ** 2,)](
        *left, *right, sorts.padding, share, size, out,
        heads, slices, n, sorts.sharpness,
        **sorts.constants, BLOCK_R=step, BLOCK_I=side, BLOCK_J=side, HARD=sorts.hard,
        num_warps=warps, num_stages=STAGES, **EVERY_LAUNCH,
    )  # fmt: skip
    return out
