"""The plan of all slices in one program per head, and its gradient in another.

Both sorts of a slice are made once, their product G_l = P^T R is weighed as in flash attention, by
a running maximum of -temperature c_l, and added to the plan. The gradient needs one more loop, since
sum_l w_l <dA, G_l> = <dA, A> is known beforehand. Names as in `op` and `tiled`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.espformer.sorts import (
    Gradients,
    Plan,
    Side,
    Sorts,
    rows_of,
    slice_weights,
    sort_entries,
)
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, LOG2_E, block, product, valid_tokens

TOKENS = 64
"""Most tokens, for which all tiles of the gradient stay in registers."""


def refusal(call: Call) -> str | None:
    """Return why the tiles of a call do not fit into registers, or None if they do."""
    if call.n > TOKENS:
        return f"takes up to {TOKENS} tokens, got {call.n}"
    return None


# fmt: off
@triton.jit
def both_sorts(
    x, x_ranked, x_order, y, y_ranked, y_order, row, index, valid, n, sharpness,
    HARD: tl.constexpr,
):
    # fmt: on
    """Return a slice's sorts P and R `[ranks, N]`, and the coordinates of both by token and rank."""
    t, order, valid_r = rows_of(x_ranked, x_order, row, index, n)
    s = tl.load(x + row + index, mask=index < n, other=0.0)
    inside = valid_r[:, None] & valid[None, :]
    P = whole_sort(t, s, order, index, inside, sharpness, HARD)
    u, order, valid_r = rows_of(y_ranked, y_order, row, index, n)
    z = tl.load(y + row + index, mask=index < n, other=0.0)
    R = whole_sort(u, z, order, index, inside, sharpness, HARD)
    return P, R, t, s, u, z


@triton.jit
def whole_sort(ranked, s, order, index, valid, sharpness, HARD: tl.constexpr):
    """Return a sort `[ranks, N]` whose rows are summed up here."""
    inverse = tl.full([1, 1], 1.0, tl.float32)
    E = sort_entries(
        ranked[:, None], s[None, :], inverse, order[:, None], index[None, :], valid, sharpness, HARD
    )
    if HARD:
        return E
    # A valid row has at least the exponential of its own token, 1.
    return E / tl.maximum(tl.sum(E, axis=1), 1.0)[:, None]


@triton.jit
def square(base, head, n, inside, index):
    """Load a matrix `[N, N]` of a head, contiguous, in float32; 0 outside."""
    place = head * n * n + index[:, None] * n + index[None, :]
    return tl.load(base + place, mask=inside, other=0.0).to(tl.float32)


# fmt: off
@triton.jit
def plan_kernel(
    x, x_ranked, x_order, y, y_ranked, y_order, distances, padding,
    plan, exact, costs,
    heads, slices, n, sharpness, decay,
    BLOCK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, HARD: tl.constexpr, SAVE: tl.constexpr,
):
    # fmt: on
    """Write a head's plan, in its dtype and with SAVE in float32, and the costs of its slices."""
    head = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    valid = valid_tokens(padding, head // heads, index, n, HAS_PADDING)
    inside = (index < n)[:, None] & (index < n)[None, :]
    D = square(distances, head, n, inside, index)
    # [BLOCK, BLOCK]
    A = tl.zeros([BLOCK, BLOCK], tl.float32)
    top = tl.full([1, 1], float("-inf"), tl.float32)
    total = tl.zeros([1, 1], tl.float32)
    for number in range(slices):
        slice_ = head * slices + number
        P, R, _, _, _, _ = both_sorts(
            x, x_ranked, x_order, y, y_ranked, y_order, slice_ * n, index, valid, n, sharpness, HARD
        )
        # [BLOCK, BLOCK]
        G = product(tl.trans(P), R, OPERAND, PRECISION)
        c = tl.sum(tl.sum(D * G, axis=1), axis=0)
        tl.store(costs + slice_, c)
        height = tl.maximum(top, -decay * c)
        share = tl.exp2(-decay * c - height)
        shrink = tl.exp2(top - height)
        A = A * shrink + G * share
        total = total * shrink + share
        top = height
    A /= total
    place = head * n * n + index[:, None] * n + index[None, :]
    tl.store(plan + place, A.to(plan.dtype.element_ty), mask=inside)
    if SAVE:
        tl.store(exact + place, A, mask=inside)


# fmt: off
@triton.jit
def plan_gradient_kernel(
    x, x_ranked, x_order, y, y_ranked, y_order, distances, padding,
    exact, weight, grad, grad_x, grad_x_ranked, grad_y, grad_y_ranked, grad_distances,
    heads, slices, n, sharpness, slope, temperature,
    BLOCK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
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
    inside = here[:, None] & here[None, :]
    D = square(distances, head, n, inside, index)
    dA = square(grad, head, n, inside, index)
    mean = tl.sum(tl.sum(dA * square(exact, head, n, inside, index), axis=1), axis=0)
    # The products read entries of up to 1.
    of_grad = tl.max(tl.max(tl.abs(dA), axis=1), axis=0)
    of_distances = tl.max(tl.max(tl.abs(D), axis=1), axis=0)
    # [BLOCK, BLOCK]
    dD = tl.zeros([BLOCK, BLOCK], tl.float32)
    for number in range(slices):
        slice_ = head * slices + number
        row = slice_ * n
        w = tl.load(weight + slice_)
        if w > 0.0:
            P, R, t, s, u, z = both_sorts(
                x, x_ranked, x_order, y, y_ranked, y_order, row, index, valid, n, sharpness, HARD
            )
            # [BLOCK, BLOCK]
            G = product(tl.trans(P), R, OPERAND, PRECISION)
            kappa = -temperature * (tl.sum(tl.sum(dA * G, axis=1), axis=0) - mean)
            dD += (w * kappa) * G
            bound = of_grad + tl.abs(kappa) * of_distances
            bound = tl.where(bound > 0.0, bound, 1.0)
            # [BLOCK, BLOCK]
            dG = (dA + kappa * D) / bound
            dP = product(R, tl.trans(dG), OPERAND, PRECISION) * (w * bound)
            dR = product(P, dG, OPERAND, PRECISION) * (w * bound)
            if HARD:
                P, R, t, s, u, z = both_sorts(
                    x, x_ranked, x_order, y, y_ranked, y_order, row, index, valid, n, sharpness,
                    False,
                )  # fmt: skip
            P *= (dP - tl.sum(P * dP, axis=1)[:, None]) * (t[:, None] - s[None, :])
            tl.store(grad_x + row + index, slope * tl.sum(P, axis=0), mask=here)
            tl.store(grad_x_ranked + row + index, -slope * tl.sum(P, axis=1), mask=here)
            R *= (dR - tl.sum(R * dR, axis=1)[:, None]) * (u[:, None] - z[None, :])
            tl.store(grad_y + row + index, slope * tl.sum(R, axis=0), mask=here)
            tl.store(grad_y_ranked + row + index, -slope * tl.sum(R, axis=1), mask=here)
    place = head * n * n + index[:, None] * n + index[None, :]
    tl.store(grad_distances + place, dD, mask=inside)


def constants(n: int, sorts: Sorts) -> dict[str, object]:
    return {**sorts.constants, "BLOCK": block(n), "HARD": sorts.hard, "num_warps": 4, **EVERY_LAUNCH}


def plan(
    left: Side,
    right: Side,
    distances: Tensor,
    temperature: float,
    sorts: Sorts,
    dtype: torch.dtype,
    *,
    save: bool,
) -> Plan:
    """Make the plan `[B, H, N, N]` in `dtype`, and with `save` what its gradient needs."""
    batch, heads, slices, n = left.s.shape
    found = distances.new_empty(batch, heads, n, n, dtype=dtype)
    exact = torch.empty_like(distances) if save else distances.new_empty(0)
    costs = distances.new_empty(batch, heads, slices)
    plan_kernel[(batch * heads,)](
        *left[:3], *right[:3], distances, sorts.padding, found, exact, costs,
        heads, slices, n, sorts.sharpness, temperature * LOG2_E,
        SAVE=save, **constants(n, sorts),
    )  # fmt: skip
    weight = slice_weights(costs, temperature) if save else costs
    return Plan(found, exact, weight, distances.new_empty(0), left, right)


def gradient(
    made: Plan, distances: Tensor, grad: Tensor, temperature: float, sorts: Sorts
) -> Gradients:
    """Return the gradients of both sides and of the distances from that of the plan."""
    left, right = made.left, made.right
    batch, heads, slices, n = left.s.shape
    sides = [torch.zeros_like(left.s) for _ in range(4)]
    grad_distances = torch.empty_like(distances)
    plan_gradient_kernel[(batch * heads,)](
        *left[:3], *right[:3], distances, sorts.padding, made.exact, made.weight,
        grad.contiguous(), *sides, grad_distances,
        heads, slices, n, sorts.sharpness, 2.0 / sorts.tau, temperature,
        **constants(n, sorts),
    )  # fmt: skip
    of_x, of_x_ranked, of_y, of_y_ranked = sides
    return Gradients((of_x_ranked, of_x), (of_y_ranked, of_y), grad_distances)
