"""ESPFormer's attention: its plan as one operator with a gradient, then a product with v.

The plan `[B, H, N, N]` is in memory, as the distances are, and nothing of that size per slice. The
operator takes the coordinates along the slices and the distances; what makes these of q and k, and
the product with v, are PyTorch's. With w_l the weight of slice l, c_l its cost, dA the gradient of
the plan A = sum_l w_l G_l, G_l = P^T R and D the distances,

    dw_l = <dA, G_l>,   dc_l = w_l kappa_l,   kappa_l = -temperature (dw_l - sum_k w_k dw_k),
    dG_l = w_l (dA + kappa_l D),   dP = R dG_l^T,   dR = P dG_l,   dD = sum_l dc_l G_l,

and sum_i P[r, i] dP[r, i] = sum_j R[r, j] dR[r, j], which softmax takes off, is a combination of
sums over the tiles of dA and of D, known before either.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call, device_of
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.espformer.tiled import (
    Side,
    Sorts,
    gradient_of_right,
    mixture,
    sort_side,
    sums_by_rank,
)
from asap_exp.ops.kernels.tiles import mask_bytes
from asap_exp.ops.masking import blank, effective_padding
from asap_exp.ops.products import AS_ALLOWED, float32_products
from asap_exp.ops.reference import espformer as reference
from asap_exp.ops.routing import choose

SMALLEST_WEIGHT = 2.0**-40
"""Weight of a slice below which it is left out, of all of 1."""


def espformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None,
    products: str = AS_ALLOWED,
    **options: Any,
) -> Tensor:
    device = device_of(q)
    call = Call(
        q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.dtype, v.dtype,
        padded=key_padding_mask is not None, gradient=gradient_needed(q, k, v),
        capability=device.capability,
    )  # fmt: skip
    route = choose("espformer", call)
    return route.launch(q, k, v, key_padding_mask=key_padding_mask, products=products, **options)


def refusal(call: Call) -> str | None:
    """Return why the kernels do not take a call, or None if they do."""
    if call.n != call.m:
        return f"sorts as many queries as keys, got n={call.n} and m={call.m}"
    return None


def by_reference(q: Tensor, k: Tensor, v: Tensor, *, products: str, **options: Any) -> Tensor:
    """Run the reference, whatever `products` says."""
    return reference.espformer_attention(q, k, v, **options)


def by_kernels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: float,
    tau: float,
    key_padding_mask: Tensor | None,
    theta: Tensor | None,
    hard: bool,
    products: str,
) -> Tensor:
    """Make the plan by kernels and multiply it with v."""
    x, y = (reference.points(t, key_padding_mask) for t in (q, k))
    has_float32 = torch.float32 in (q.dtype, v.dtype)
    dtype = torch.float32 if has_float32 else v.dtype
    sides = (reference.projected(t, theta).contiguous() for t in (x, y))
    distances = reference.centred_distances(x, y)
    plan = _plan(
        *sides, distances, *as_operand(distances.detach(), dtype),
        effective_padding(key_padding_mask), temperature, tau, hard, dtype, products,
    )[0]  # fmt: skip
    values = blank(v, key_padding_mask, 2).to(dtype)
    return blank(plan @ values, key_padding_mask, 2).to(v.dtype)


def sorts_of(
    tau: float, hard: bool, padding: Tensor | None, dtype: torch.dtype, products: str
) -> Sorts:
    operand = tl.float32 if dtype == torch.float32 else tl.float16
    return Sorts(tau, hard, mask_bytes(padding), operand, float32_products(products))


def as_operand(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a matrix `[B, H, N, N]` as products read it, and its scale `[B, H, 1]`.

    Unless `dtype`, that of the plan, is float32, float16 holds it relative to its largest entry.
    """
    if dtype == torch.float32:
        return matrix.float().contiguous(), matrix.new_ones(*matrix.shape[:2], 1, dtype=torch.float32)
    size = matrix.abs().amax(dim=(-1, -2)).float()
    size = torch.where(size > 0, size, 1.0)
    return (matrix / size[..., None, None]).half().contiguous(), size[..., None]


@torch.library.custom_op("asap_exp::espformer_plan", mutates_args=())
def _plan(
    x: Tensor,
    y: Tensor,
    distances: Tensor,
    matrix: Tensor,
    size: Tensor,
    padding: Tensor | None,
    temperature: float,
    tau: float,
    hard: bool,
    dtype: torch.dtype,
    products: str,
) -> list[Tensor]:
    """Return the plan of coordinates x and y `[B, H, L, N]`, and what its gradient needs.

    This is the weights of the slices, their costs by rank, and the sorts of both sides. The
    `distances` are read as an operand, `matrix` times `size`, and get the gradient.
    """
    if x.numel() == 0:
        return _results(x, dtype)
    with torch.cuda.device_of(x):
        sorts = sorts_of(tau, hard, padding, dtype, products)
        left, right = (sort_side(s, padding, sorts) for s in (x, y))
        costs = sums_by_rank(left, right, matrix, sorts)
        total = costs.sum(dim=-1) * size
        weight = torch.softmax(-temperature * total, dim=-1)
        weight = torch.where(weight > SMALLEST_WEIGHT, weight, 0.0)
        plan = mixture(left, right, weight, sorts, dtype)
    return [plan, weight, costs, *left[1:], *right[1:]]


def _results(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Allocate the results of `_plan`."""
    batch, heads, slices, n = x.shape
    side = [torch.empty_like(x), torch.empty_like(x), torch.empty_like(x, dtype=torch.int64)]
    return [
        x.new_empty(batch, heads, n, n, dtype=dtype),
        x.new_empty(batch, heads, slices),
        torch.empty_like(x),
        *side,
        *(torch.empty_like(each) for each in side),
    ]


@_plan.register_fake
def _(
    x: Tensor,
    y: Tensor,
    distances: Tensor,
    matrix: Tensor,
    size: Tensor,
    padding: Tensor | None,
    temperature: float,
    tau: float,
    hard: bool,
    dtype: torch.dtype,
    products: str,
) -> list[Tensor]:
    return _results(x, dtype)


@torch.library.custom_op("asap_exp::espformer_plan_backward", mutates_args=())
def _plan_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    matrix: Tensor,
    size: Tensor,
    padding: Tensor | None,
    kept: list[Tensor],
    temperature: float,
    tau: float,
    hard: bool,
    dtype: torch.dtype,
    products: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the coordinates and of the distances."""
    if x.numel() == 0:
        return torch.empty_like(x), torch.empty_like(y), x.new_empty(grad.shape)
    weight, costs, *rest = kept
    left, right = Side(x, *rest[:3]), Side(y, *rest[3:])
    with torch.cuda.device_of(x):
        sorts = sorts_of(tau, hard, padding, dtype, products)
        given, grad_size = as_operand(grad, dtype)
        by_rank = sums_by_rank(left, right, given, sorts, weight=weight)
        grad_weight = by_rank.sum(dim=-1) * grad_size
        mean = (weight * grad_weight).sum(dim=-1, keepdim=True)
        kappa = -temperature * (grad_weight - mean)
        grad_distances = mixture(left, right, weight * kappa, sorts, torch.float32)
        # dG_l is `scale` times a matrix of entries up to 1.
        bound = grad_size + kappa.abs() * size
        factors, scale = (grad_size / bound, kappa * size / bound), weight * bound
        inner = weight[..., None] * (by_rank * grad_size[..., None] + costs * (kappa * size)[..., None])
        grads = []
        for one, two, pair in ((right, left, (given.mT, matrix.mT)), (left, right, (given, matrix))):
            if hard:  # the rows of the gradient are hard, and those of the sort are soft
                inner = scale[..., None] * sums_by_rank(
                    one, two, pair[0], sorts, weight=weight, other=pair[1], factors=factors,
                    right_hard=False,
                )  # fmt: skip
            ranked, direct = gradient_of_right(
                one, two, *pair, factors, scale, inner, weight, sorts
            )
            grads.append(direct.scatter_add_(-1, two.order, ranked))
    return grads[0], grads[1], grad_distances


@_plan_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    matrix: Tensor,
    size: Tensor,
    padding: Tensor | None,
    kept: list[Tensor],
    temperature: float,
    tau: float,
    hard: bool,
    dtype: torch.dtype,
    products: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y), x.new_empty(grad.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, y, _, matrix, size, padding, *ctx.options = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(x, y, matrix, size, padding, *kept)


def _backward(ctx, grads):
    x, y, matrix, size, padding, *kept = ctx.saved_tensors
    found = _plan_backward(grads[0], x, y, matrix, size, padding, kept, *ctx.options)
    return *found, *(None,) * 8


_plan.register_autograd(_backward, setup_context=_setup_context)
