"""The plan of all slices and its gradient from sums over tiles.

With w_l the weight of slice l, dA the gradient of the plan A = sum_l w_l G_l, G_l = P^T R, and D
the distances,

    dw_l = <dA, G_l>,   dc_l = w_l kappa_l,   kappa_l = -temperature (dw_l - sum_k w_k dw_k),
    dG_l = w_l (dA + kappa_l D),   dP = R dG_l^T,   dR = P dG_l,   dD = sum_l dc_l G_l.

The gradient of a softmax needs sum_i P[r, i] dP[r, i] = sum_j R[r, j] dR[r, j] beforehand: for
soft sorts a combination of the sums by rank that the costs and dw_l are made of. A constant in dA,
as one in D, changes no gradient but its rounding, and is taken off.
"""

import torch
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.espformer import tiled
from asap_exp.ops.kernels.espformer.sorts import Gradients, Plan, Side, Sorts, slice_weights


def plan(
    left: Side,
    right: Side,
    distances: Tensor,
    temperature: float,
    sorts: Sorts,
    *,
    save: bool,
) -> Plan:
    """Make the plan `[B, H, N, N]`."""
    if sorts.hard:
        costs = tiled.picked_by_rank(left, right, distances)
        total = costs.sum(dim=-1)
    else:
        matrix, size = as_operand(distances, sorts)
        costs = tiled.sums_by_rank(left, right, matrix, sorts)
        total = costs.sum(dim=-1) * size
    weight = slice_weights(total, temperature)
    return Plan(tiled.mixture(left, right, weight, sorts), weight, costs, left, right)


def gradient(
    made: Plan, distances: Tensor, grad: Tensor, temperature: float, sorts: Sorts
) -> Gradients:
    """Return the gradients of both sides and of the distances from that of the plan."""
    left, right, weight = made.left, made.right, made.weight
    matrix, size = as_operand(distances, sorts)
    centred = grad - grad.mean(dim=(-1, -2), keepdim=True)
    given, grad_size = as_operand(centred, sorts)
    if sorts.hard:
        of_rank = tiled.picked_by_rank(left, right, centred)
    else:
        of_rank = tiled.sums_by_rank(left, right, given, sorts, weight=weight)
        of_rank *= grad_size[..., None]
    grad_weight = of_rank.sum(dim=-1)
    mean = (weight * grad_weight).sum(dim=-1, keepdim=True)
    kappa = -temperature * (grad_weight - mean)
    grad_distances = tiled.mixture(left, right, weight * kappa, sorts)
    # dG_l is `scale` times a combination whose entries are at most 1.
    bound = grad_size + kappa.abs() * size
    factors, scale = (grad_size / bound, kappa * size / bound), weight * bound
    inner = weight[..., None] * (of_rank + made.costs * (kappa * size)[..., None])
    sides = []
    turned = given.mT, matrix.mT
    for one, two, pair in ((right, left, turned), (left, right, (given, matrix))):
        if sorts.hard:  # dR is of hard sorts, and its softmax is soft
            inner = scale[..., None] * tiled.sums_by_rank(
                one, two, pair[0], sorts, weight=weight, other=pair[1], factors=factors
            )  # fmt: skip
        sides.append(tiled.gradient_of_right(one, two, *pair, factors, scale, inner, weight, sorts))
    return Gradients(sides[0], sides[1], grad_distances)


def as_operand(matrix: Tensor, sorts: Sorts) -> tuple[Tensor, Tensor]:
    """Return a matrix `[B, H, N, N]` as products read it, and its scale `[B, H, 1]`.

    float16 holds it relative to its largest entry.
    """
    if sorts.operand == tl.float32:
        return matrix.float().contiguous(), matrix.new_ones(*matrix.shape[:2], 1)
    size = matrix.abs().amax(dim=(-1, -2)).float()
    size = torch.where(size > 0, size, 1.0)
    return (matrix / size[..., None, None]).half().contiguous(), size[..., None]
