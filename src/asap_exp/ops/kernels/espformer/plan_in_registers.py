"""The plan of all slices in one program per head, and its gradient in another.

Both sorts of a slice are made once, some ranks at a time, and their product G_l = P^T R is weighed
as in flash attention, by a running maximum of -temperature c_l. The gradient goes over the slices
once too, since sum_l w_l <dA, G_l> = <dA, A> is known beforehand. Names as in `plan_by_tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.espformer.sorts import (
    SLOPE,
    STAGES,
    Gradients,
    Plan,
    Side,
    Sorts,
    ranks_of,
    slice_weights,
    sort_entries,
    tokens_of,
)
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, LOG2_E, block, product, valid_tokens

TOKENS = 64
"""Most tokens, for which the tiles of the gradient stay in registers."""
RANKS = 32
"""Ranks at a time."""
WARPS = 4


def refusal(call: Call) -> str | None:
    """Return why the tiles of a call do not fit into registers, or None if they do."""
    if call.n > TOKENS:
        return f"takes up to {TOKENS} tokens, got {call.n}"
    if call.has_float32:
        return "multiplies in float16: takes 16-bit inputs alone"
    return None


@triton.jit
def sort_rows(s, ranked, order, inverse, row, r, index, valid, n, sharpness, HARD: tl.constexpr):
    """Return rows r of a slice's sort, the sorted coordinates of r, and those of all tokens."""
    t, token, inverse_r = ranks_of(ranked, order, inverse, row, r, n)
    s_i = tokens_of(s, row, index, valid, sharpness)
    # [len(r), BLOCK]
    E = sort_entries(
        t[:, None], s_i[None, :], inverse_r[:, None], token[:, None], index[None, :],
        sharpness, HARD,
    )  # fmt: skip
    return E, t, s_i


# fmt: off
@triton.jit
def slice_plan(
    x, x_ranked, x_order, x_inverse, y, y_ranked, y_order, y_inverse, row, index, valid, n,
    sharpness, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HARD: tl.constexpr,
):
    # fmt: on
    """Return G = P^T R `[BLOCK, BLOCK]` of a slice."""
    G = tl.zeros([BLOCK, BLOCK], tl.float32)
    for first in range(0, n, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        P, _, _ = sort_rows(
            x, x_ranked, x_order, x_inverse, row, r, index, valid, n, sharpness, HARD
        )
        R, _, _ = sort_rows(
            y, y_ranked, y_order, y_inverse, row, r, index, valid, n, sharpness, HARD
        )
        G += product(tl.trans(P), R, OPERAND, PRECISION)
    return G


@triton.jit
def square(base, stride, index, here):
    """Load a matrix `[N, N]` of a head; 0 outside."""
    place = base + index[:, None] * stride + index[None, :]
    return tl.load(place, mask=here[:, None] & here[None, :], other=0.0)


@triton.jit
def largest(tile):
    """Return the largest absolute value of a tile, or 1 for 0."""
    found = tl.max(tl.max(tl.abs(tile), axis=1), axis=0)
    return tl.where(found > 0.0, found, 1.0)


@triton.jit
def store_square(base, stride, index, here, tile):
    """Store a matrix `[N, N]` of a head."""
    place = base + index[:, None] * stride + index[None, :]
    tl.store(place, tile, mask=here[:, None] & here[None, :])


# fmt: off
@triton.jit
def plan_kernel(
    x, x_ranked, x_order, x_inverse, y, y_ranked, y_order, y_inverse, distances, padding,
    plan, costs, distances_i, plan_i,
    heads, slices, n, decay, sharpness,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, HARD: tl.constexpr,
):
    # fmt: on
    """Write a head's plan and the costs of its slices."""
    head = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    valid = valid_tokens(padding, head // heads, index, n, HAS_PADDING)
    here = index < n
    D = square(distances + head * n * n, distances_i, index, here)
    # [BLOCK, BLOCK]
    A = tl.zeros([BLOCK, BLOCK], tl.float32)
    top = tl.full([1, 1], float("-inf"), tl.float32)
    total = tl.zeros([1, 1], tl.float32)
    for number in range(slices):
        slice_ = head * slices + number
        G = slice_plan(
            x, x_ranked, x_order, x_inverse, y, y_ranked, y_order, y_inverse,
            slice_ * n, index, valid, n, sharpness, BLOCK, BLOCK_R, OPERAND, PRECISION, HARD,
        )  # fmt: skip
        c = tl.sum(tl.sum(D * G, axis=1), axis=0)
        tl.store(costs + slice_, c)
        height = tl.maximum(top, -decay * c)
        share = tl.exp2(-decay * c - height)
        shrink = tl.exp2(top - height)
        A = A * shrink + G * share
        total = total * shrink + share
        top = height
    store_square(plan + head * n * n, plan_i, index, here, A / total)


# fmt: off
@triton.jit
def plan_gradient_kernel(
    x, x_ranked, x_order, x_inverse, y, y_ranked, y_order, y_inverse, distances, padding,
    plan, weight, grad, grad_x, grad_x_ranked, grad_y, grad_y_ranked, grad_distances,
    distances_i, plan_i, grad_i, grad_distances_i,
    heads, slices, n, temperature, sharpness,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, HARD: tl.constexpr,
):
    # fmt: on
    """Write the gradients of a head's coordinates, unsorted and sorted, and of its distances.

    Slices of weight 0 are left out: what they write is 0 beforehand.
    """
    head = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    valid = valid_tokens(padding, head // heads, index, n, HAS_PADDING)
    here = index < n
    D = square(distances + head * n * n, distances_i, index, here)
    dA = square(grad + head * n * n, grad_i, index, here)
    dA -= tl.sum(tl.sum(dA, axis=1), axis=0) / (n * n)
    A = square(plan + head * n * n, plan_i, index, here)
    # Kept as products read them, relative to their largest entries.
    of_grad = largest(dA)
    of_distances = largest(D)
    dA_part = (dA / of_grad).to(OPERAND)
    D_part = (D / of_distances).to(OPERAND)
    # Of the same numbers as each slice's: a large temperature multiplies the differences.
    mean = tl.sum(tl.sum(dA_part.to(tl.float32) * A, axis=1), axis=0)
    slope = SLOPE * sharpness
    # [BLOCK, BLOCK]
    dD = tl.zeros([BLOCK, BLOCK], tl.float32)
    for number in range(slices):
        slice_ = head * slices + number
        row = slice_ * n
        w = tl.load(weight + slice_)
        if w != 0.0:
            G = slice_plan(
                x, x_ranked, x_order, x_inverse, y, y_ranked, y_order, y_inverse,
                row, index, valid, n, sharpness, BLOCK, BLOCK_R, OPERAND, PRECISION, HARD,
            )  # fmt: skip
            inner = tl.sum(tl.sum(dA_part.to(tl.float32) * G, axis=1), axis=0)
            kappa = -temperature * of_grad * (inner - mean)
            dD += (w * kappa) * G
            bound = of_grad + tl.abs(kappa) * of_distances
            # [BLOCK, BLOCK]
            dG = dA_part.to(tl.float32) * (of_grad / bound)
            dG += D_part.to(tl.float32) * (kappa * of_distances / bound)
            dG = dG.to(OPERAND)
            # [BLOCK_R, BLOCK], for sums over ranks that are taken only once
            of_x = tl.zeros([BLOCK_R, BLOCK], tl.float32)
            of_y = tl.zeros([BLOCK_R, BLOCK], tl.float32)
            for first in range(0, n, BLOCK_R):
                r = first + tl.arange(0, BLOCK_R)
                P, t, s = sort_rows(
                    x, x_ranked, x_order, x_inverse, row, r, index, valid, n, sharpness, HARD
                )
                R, u, z = sort_rows(
                    y, y_ranked, y_order, y_inverse, row, r, index, valid, n, sharpness, HARD
                )
                # [BLOCK_R, BLOCK]
                dP = product(R, tl.trans(dG), OPERAND, PRECISION) * (w * bound)
                dR = product(P, dG, OPERAND, PRECISION) * (w * bound)
                if HARD:
                    P, t, s = sort_rows(
                        x, x_ranked, x_order, x_inverse, row, r, index, valid, n, sharpness, False
                    )
                    R, u, z = sort_rows(
                        y, y_ranked, y_order, y_inverse, row, r, index, valid, n, sharpness, False
                    )
                mean_r = tl.sum(P * dP, axis=1)
                dX = P * (dP - mean_r[:, None]) * (t[:, None] - s[None, :])
                tl.store(grad_x_ranked + row + r, tl.sum(dX, axis=1) * -slope, mask=r < n)
                of_x += dX
                mean_r = tl.sum(R * dR, axis=1)
                dY = R * (dR - mean_r[:, None]) * (u[:, None] - z[None, :])
                tl.store(grad_y_ranked + row + r, tl.sum(dY, axis=1) * -slope, mask=r < n)
                of_y += dY
            tl.store(grad_x + row + index, tl.sum(of_x, axis=0) * slope, mask=here)
            tl.store(grad_y + row + index, tl.sum(of_y, axis=0) * slope, mask=here)
    store_square(grad_distances + head * n * n, grad_distances_i, index, here, dD)


def constants(n: int, sorts: Sorts) -> dict[str, object]:
    """Return the constants of both kernels."""
    blocks = {"BLOCK": block(n), "BLOCK_R": min(block(n), RANKS)}
    return {**sorts.constants, **blocks, "HARD": sorts.hard}


def plan(
    left: Side,
    right: Side,
    distances: Tensor,
    temperature: float,
    sorts: Sorts,
    *,
    save: bool,
) -> Plan:
    """Make the plan `[B, H, N, N]`, and with `save` what its gradient needs."""
    batch, heads, slices, n = left.s.shape
    found = torch.empty_like(distances)
    costs = distances.new_empty(batch, heads, slices)
    plan_kernel[(batch * heads,)](
        *left, *right, distances, sorts.padding, found, costs, n, n,
        heads, slices, n, temperature * LOG2_E, sorts.sharpness,
        **constants(n, sorts), num_warps=WARPS, num_stages=STAGES, **EVERY_LAUNCH,
    )  # fmt: skip
    weight = slice_weights(costs, temperature) if save else costs
    return Plan(found, weight, distances.new_empty(0), left, right)


def gradient(
    made: Plan, distances: Tensor, grad: Tensor, temperature: float, sorts: Sorts
) -> Gradients:
    """Return the gradients of both sides and of the distances from that of the plan."""
    left, right = made.left, made.right
    batch, heads, slices, n = left.s.shape
    sides = [torch.zeros_like(left.s) for _ in range(4)]
    grad_distances = torch.empty_like(distances)
    plan_gradient_kernel[(batch * heads,)](
        *left, *right, distances, sorts.padding, made.plan, made.weight,
        grad.contiguous(), *sides, grad_distances, n, n, n, n,
        heads, slices, n, temperature, sorts.sharpness,
        **constants(n, sorts), num_warps=WARPS, num_stages=STAGES, **EVERY_LAUNCH,
    )  # fmt: skip
    of_x, of_x_ranked, of_y, of_y_ranked = sides
    return Gradients((of_x_ranked, of_x), (of_y_ranked, of_y), grad_distances)
