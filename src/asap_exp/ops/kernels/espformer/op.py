"""ESPFormer's attention: its plan as one operator with a gradient, then a product with v.

The plan `[B, H, N, N]` is in memory, as the distances are, and nothing of that size per slice. The
operator takes the coordinates along the slices and the distances; what makes these of q and k, and
the product with v, are PyTorch's.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call, device_of
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.espformer import plan_by_tiles, plan_in_registers
from asap_exp.ops.kernels.espformer.sorts import (
    BLURRIEST,
    SHARPEST,
    Plan,
    Side,
    Sorts,
    sort_side,
)
from asap_exp.ops.kernels.tiles import LOG2_E, mask_bytes
from asap_exp.ops.masking import blank, effective_padding
from asap_exp.ops.products import AS_ALLOWED, float32_products
from asap_exp.ops.reference import espformer as reference
from asap_exp.ops.routing import choose


def espformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None,
    theta: Tensor | None,
    products: str = AS_ALLOWED,
    **options: Any,
) -> Tensor:
    device = device_of(q)
    call = Call(
        q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.dtype, v.dtype,
        padded=key_padding_mask is not None, gradient=gradient_needed(q, k, v, theta),
        capability=device.capability,
    )  # fmt: skip
    options |= {"key_padding_mask": key_padding_mask, "theta": theta, "products": products}
    return choose("espformer", call).launch(q, k, v, **options)


LONGEST = 46_340
"""Most tokens, whose matrices have offsets below 2^31."""


def refusal(call: Call) -> str | None:
    """Return why the kernels do not take a call, or None if they do."""
    if call.n != call.m:
        return f"takes as many queries as keys, got n={call.n} and m={call.m}"
    if call.n > LONGEST:
        return f"takes up to {LONGEST:,} tokens, got {call.n}"
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
    """Make the plan by kernels and multiply it with v.

    The plan, its gradient and that product are in float32: in bfloat16 they would lose more than
    all products inside the kernels, beside which this one is small.
    """
    x, y = (reference.points(t, key_padding_mask) for t in (q, k))
    has_float32 = torch.float32 in (q.dtype, v.dtype)
    dtype = torch.float32 if has_float32 else v.dtype
    sides = (reference.projected(t, theta).contiguous() for t in (x, y))
    plan, *_ = _plan(
        *sides, reference.centred_distances(x, y), effective_padding(key_padding_mask),
        temperature, tau, hard, gradient_needed(q, k, v, theta), dtype, products,
    )  # fmt: skip
    values = blank(v, key_padding_mask, 2).float()
    return blank(plan @ values, key_padding_mask, 2).to(v.dtype)


def sorts_of(
    tau: float, hard: bool, padding: Tensor | None, dtype: torch.dtype, products: str
) -> Sorts:
    sharpness = LOG2_E / min(max(tau, SHARPEST), BLURRIEST)
    operand = tl.float32 if dtype == torch.float32 else tl.float16
    return Sorts(hard, sharpness, mask_bytes(padding), operand, float32_products(products))


def plan_call(x: Tensor, dtype: torch.dtype, save: bool) -> Call:
    """Return the call that makes a plan of coordinates x `[B, H, L, N]` for inputs in `dtype`."""
    n, device = x.shape[3], device_of(x)
    return Call(n, n, 0, 0, dtype, dtype, gradient=save, capability=device.capability)


@torch.library.custom_op("asap_exp::espformer_plan", mutates_args=())
def _plan(
    x: Tensor,
    y: Tensor,
    distances: Tensor,
    padding: Tensor | None,
    temperature: float,
    tau: float,
    hard: bool,
    save: bool,
    dtype: torch.dtype,
    products: str,
) -> list[Tensor]:
    """Return the plan of coordinates x and y `[B, H, L, N]`, and what its gradient needs.

    All are in float32; `dtype` is that of the inputs, and decides in which products are.
    """
    if x.numel() == 0:
        return _results(x, save, dtype)
    with torch.cuda.device_of(x):
        sorts = sorts_of(tau, hard, padding, dtype, products)
        sides = (sort_side(s.contiguous(), padding, sorts) for s in (x, y))
        launch = choose("espformer_plan", plan_call(x, dtype, save)).launch
        made = launch(*sides, distances.contiguous(), temperature, sorts, save=save)
    if not save:
        return [made.plan]
    return [*made[:3], *made.left[1:], *made.right[1:]]


def _results(x: Tensor, save: bool, dtype: torch.dtype) -> list[Tensor]:
    """Allocate the results of `_plan`."""
    batch, heads, slices, n = x.shape
    plan = x.new_empty(batch, heads, n, n)
    if not save:
        return [plan]
    route = choose("espformer_plan", plan_call(x, dtype, save))
    by_tiles = route.launch is plan_by_tiles.plan
    weight, costs = x.new_empty(batch, heads, slices), x.new_empty(x.shape if by_tiles else 0)
    sides = (x.new_empty(x.shape, dtype=t) for t in 2 * (x.dtype, torch.int64, x.dtype))
    return [plan, weight, costs, *sides]


@_plan.register_fake
def _(
    x: Tensor,
    y: Tensor,
    distances: Tensor,
    padding: Tensor | None,
    temperature: float,
    tau: float,
    hard: bool,
    save: bool,
    dtype: torch.dtype,
    products: str,
) -> list[Tensor]:
    return _results(x, save, dtype)


@torch.library.custom_op("asap_exp::espformer_plan_backward", mutates_args=())
def _plan_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    distances: Tensor,
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
        return torch.zeros_like(x), torch.zeros_like(y), distances.new_zeros(distances.shape)
    plan, weight, costs, *sorted_ = kept
    left, right = Side(x.contiguous(), *sorted_[:3]), Side(y.contiguous(), *sorted_[3:])
    made = Plan(plan, weight, costs, left, right)
    by = plan_by_tiles if costs.numel() else plan_in_registers  # as the plan itself was made
    with torch.cuda.device_of(x):
        sorts = sorts_of(tau, hard, padding, dtype, products)
        found = by.gradient(made, distances.contiguous(), grad, temperature, sorts)
        of_x, of_y = (
            unsorted.scatter_add_(-1, side.order, ranked)
            for side, (ranked, unsorted) in ((left, found.left), (right, found.right))
        )
    return of_x, of_y, found.distances


@_plan_backward.register_fake
def _(
    grad: Tensor, x: Tensor, y: Tensor, distances: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y), distances.new_empty(distances.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, y, distances, padding, temperature, tau, hard, _, dtype, products = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, y, distances, padding, *output)
    ctx.options = temperature, tau, hard, dtype, products


def _backward(ctx, grads):
    x, y, distances, padding, *kept = ctx.saved_tensors
    found = _plan_backward(grads[0], x, y, distances, padding, kept, *ctx.options)
    return *found, *(None,) * 7


_plan.register_autograd(_backward, setup_context=_setup_context)
