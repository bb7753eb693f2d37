"""The duals of a subset, extended to all queries, to all keys or to both, with a gradient."""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.coarse import extension, updates_gradient
from asap_exp.ops.kernels.coarse import subset as updates
from asap_exp.ops.kernels.coarse.extension import Sides
from asap_exp.ops.kernels.coarse.subset import SubsetDuals
from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.tiles import LOG2_E
from asap_exp.ops.products import AS_ALLOWED, IEEE
from asap_exp.ops.reference.coarse import CoarseDuals, coarse_col, coarse_duals, coarse_ready
from asap_exp.ops.subsets import Subset


def refusal(call: Call) -> str | None:
    """Return why the kernels do not compute the dual, or None if they do."""
    return updates.refusal(call)


def in_registers(
    q: Tensor,
    k: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    *,
    of_queries: bool,
    of_keys: bool,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    products: str = AS_ALLOWED,
) -> CoarseDuals:
    """Return the predicted duals of all queries and of all keys, in natural units.

    One run of the updates is for both. A dual that is not asked for is empty, `[B, H, 0]`.
    """
    save = gradient_needed(q, k)
    ready, col, _, _ = _coarse_dual(
        q, k, *tensors(subset, key_subset), key_padding_mask,
        of_queries, of_keys, num_iters, scale / eps, save, products,
    )  # fmt: skip
    return CoarseDuals(ready, col)


def in_pytorch(
    q: Tensor,
    k: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    *,
    of_queries: bool,
    of_keys: bool,
    products: str = IEEE,
    **options: Any,
) -> CoarseDuals:
    """Return the same by plain PyTorch, which multiplies as it is set to."""
    if of_queries and of_keys:
        return coarse_duals(q, k, subset=subset, key_subset=key_subset, **options)
    empty = q.new_empty(*q.shape[:2], 0)
    if of_queries:
        return CoarseDuals(coarse_ready(q, k, subset, key_subset, **options), empty)
    return CoarseDuals(empty, coarse_col(q, k, subset, key_subset, **options))


def tensors(subset: Subset, key_subset: Subset | None) -> tuple[Tensor, ...]:
    """Return tokens and weights of the queries, then of the keys, as the kernels read them."""
    both = subset, subset if key_subset is None else key_subset
    return tuple(x.contiguous() for each in both for x in (each.tokens, each.weight.float()))


def empty_duals(p: Launch, subset: Subset, key_subset: Subset, *, save: bool) -> SubsetDuals:
    """Allocate the duals of all updates on a subset, or of the last alone."""
    steps = p.num_iters - 1
    rows, cols = (steps + 1, steps) if save else (1, min(steps, 1))

    def allocated(kept: int, of: Subset) -> Tensor:
        shape = *p.q.shape[:2], kept, of.tokens.shape[2]
        return p.q.new_empty(shape, dtype=torch.float32)

    return SubsetDuals(allocated(rows, subset), allocated(cols, key_subset))


@torch.library.custom_op("asap_exp::coarse_dual", mutates_args=())
def _coarse_dual(
    q: Tensor,
    k: Tensor,
    q_tokens: Tensor,
    q_weight: Tensor,
    k_tokens: Tensor,
    k_weight: Tensor,
    padding: Tensor | None,
    of_queries: bool,
    of_keys: bool,
    num_iters: int,
    slope: float,
    save: bool,
    products: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = Launch.of(q, k, k, padding, num_iters, slope, products)
    subset, key_subset = Subset(q_tokens, q_weight), Subset(k_tokens, k_weight)
    duals = empty_duals(p, subset, key_subset, save=save)
    results = empty_results(q, k, of_queries, of_keys, num_iters)
    sides = computed(q, k, of_queries, of_keys, num_iters)
    if sides:
        with torch.cuda.device_of(q):
            updates.launch(p, subset, key_subset, duals, save)
            for side in sides:
                result = results[not side]
                of_side = Sides(p, key_subset if side else subset, of_queries=side)
                extension.launch(p, of_side, last_of(duals, side), result, natural=True)
    return *results, *duals


@_coarse_dual.register_fake
def _(
    q: Tensor,
    k: Tensor,
    q_tokens: Tensor,
    q_weight: Tensor,
    k_tokens: Tensor,
    k_weight: Tensor,
    padding: Tensor | None,
    of_queries: bool,
    of_keys: bool,
    num_iters: int,
    slope: float,
    save: bool,
    products: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = Launch(q, k, k, None, num_iters, slope)
    subset, key_subset = Subset(q_tokens, q_weight), Subset(k_tokens, k_weight)
    duals = empty_duals(p, subset, key_subset, save=save)
    return *empty_results(q, k, of_queries, of_keys, num_iters), *duals


def empty_results(
    q: Tensor, k: Tensor, of_queries: bool, of_keys: bool, num_iters: int
) -> tuple[Tensor, Tensor]:
    """Allocate the duals of all queries and of all keys; that of the queries is 0 if T = 1.

    A dual that is not asked for has no tokens.
    """
    shapes = [
        x.shape[:3] if asked else (*x.shape[:2], 0) for x, asked in ((q, of_queries), (k, of_keys))
    ]
    allocate = q.new_zeros if num_iters == 1 else q.new_empty
    return allocate(shapes[0], dtype=torch.float32), k.new_empty(shapes[1], dtype=torch.float32)


def computed(
    q: Tensor, k: Tensor, of_queries: bool, of_keys: bool, num_iters: int
) -> tuple[bool, ...]:
    """Return the sides whose dual the kernels compute: True for the queries, False for the keys."""
    asked = ((True, of_queries and num_iters > 1, q), (False, of_keys, k))
    return tuple(side for side, wanted, x in asked if wanted and x.shape[:3].numel())


def last_of(duals: SubsetDuals, of_queries: bool) -> Tensor:
    """Return the dual that extends to the queries, or to the keys."""
    return (duals.cols if of_queries else duals.rows)[:, :, -1]


@torch.library.custom_op("asap_exp::coarse_dual_backward", mutates_args=())
def _backward_op(
    grad_ready: Tensor,
    grad_col: Tensor,
    q: Tensor,
    k: Tensor,
    q_tokens: Tensor,
    q_weight: Tensor,
    k_tokens: Tensor,
    k_weight: Tensor,
    padding: Tensor | None,
    ready: Tensor,
    col: Tensor,
    rows: Tensor,
    cols: Tensor,
    of_queries: bool,
    of_keys: bool,
    num_iters: int,
    slope: float,
    products: str,
) -> tuple[Tensor, Tensor]:
    sides = computed(q, k, of_queries, of_keys, num_iters)
    # All tokens of the side of a dual have a gradient; on the other only those of the subset.
    grad_q = (q.new_empty if True in sides else q.new_zeros)(q.shape)
    grad_k = (k.new_empty if False in sides else k.new_zeros)(k.shape)
    if not sides:
        return grad_q, grad_k
    p = Launch.of(q, k, k, padding, num_iters, slope, products)
    subset, key_subset = Subset(q_tokens, q_weight), Subset(k_tokens, k_weight)
    duals = SubsetDuals(rows, cols)
    found: dict[bool, tuple[Tensor, Tensor]] = {}
    with torch.cuda.device_of(q):
        for side in sides:
            result, grad = (ready, grad_ready) if side else (col, grad_col)
            found[side] = extension.launch_gradient(
                p, Sides(p, key_subset if side else subset, of_queries=side), last_of(duals, side),
                result * LOG2_E, grad.contiguous(), grad_q if side else grad_k,
            )  # fmt: skip
        updates_gradient.launch(
            p, subset, key_subset, duals, (grad_q, grad_k),
            of_rows=found.get(False), of_cols=found.get(True),
        )  # fmt: skip
    return grad_q, grad_k


@_backward_op.register_fake
def _(
    grad_ready: Tensor, grad_col: Tensor, q: Tensor, k: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors_, ctx.of_queries, ctx.of_keys, ctx.num_iters, ctx.slope, _, ctx.products = inputs
    _, _, rows, cols = output
    ctx.mark_non_differentiable(rows, cols)
    ctx.save_for_backward(*tensors_, *output)


def _backward(ctx, grad_ready, grad_col, *_):
    options = ctx.of_queries, ctx.of_keys, ctx.num_iters, ctx.slope, ctx.products
    return *_backward_op(grad_ready, grad_col, *ctx.saved_tensors, *options), *[None] * 11


_coarse_dual.register_autograd(_backward, setup_context=_setup_context)
