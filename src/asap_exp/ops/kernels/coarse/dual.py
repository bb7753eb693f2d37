"""The dual of a subset, extended to all queries or to all keys, as one operator with a gradient."""

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
from asap_exp.ops.reference.coarse import coarse_col, coarse_ready
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
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    products: str = AS_ALLOWED,
) -> Tensor:
    """Return the predicted dual of all queries, or of all keys, in natural units."""
    save = gradient_needed(q, k)
    result, _, _ = _coarse_dual(
        q, k, *tensors(subset, key_subset), key_padding_mask,
        of_queries, num_iters, scale / eps, save, products,
    )  # fmt: skip
    return result


def in_pytorch(
    q: Tensor,
    k: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    *,
    of_queries: bool,
    products: str = IEEE,
    **options: Any,
) -> Tensor:
    """Return the same by plain PyTorch, which multiplies as it is set to."""
    function = coarse_ready if of_queries else coarse_col
    return function(q, k, subset, key_subset, **options)


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
    num_iters: int,
    slope: float,
    save: bool,
    products: str,
) -> tuple[Tensor, Tensor, Tensor]:
    p = Launch.of(q, k, k, padding, num_iters, slope, products)
    subset, key_subset = Subset(q_tokens, q_weight), Subset(k_tokens, k_weight)
    duals = empty_duals(p, subset, key_subset, save=save)
    result = empty_result(q, k, of_queries, num_iters)
    if result.numel() and not (of_queries and num_iters == 1):
        with torch.cuda.device_of(q):
            updates.launch(p, subset, key_subset, duals, save)
            sides = Sides(p, key_subset if of_queries else subset, of_queries=of_queries)
            extension.launch(p, sides, last_of(duals, of_queries), result, natural=True)
    return result, *duals


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
    num_iters: int,
    slope: float,
    save: bool,
    products: str,
) -> tuple[Tensor, Tensor, Tensor]:
    p = Launch(q, k, k, None, num_iters, slope)
    subset, key_subset = Subset(q_tokens, q_weight), Subset(k_tokens, k_weight)
    duals = empty_duals(p, subset, key_subset, save=save)
    return empty_result(q, k, of_queries, num_iters), *duals


def empty_result(q: Tensor, k: Tensor, of_queries: bool, num_iters: int) -> Tensor:
    """Allocate the dual of all tokens; that of the queries is 0 if T = 1."""
    shape = (q if of_queries else k).shape[:3]
    allocate = q.new_zeros if of_queries and num_iters == 1 else q.new_empty
    return allocate(shape, dtype=torch.float32)


def last_of(duals: SubsetDuals, of_queries: bool) -> Tensor:
    """Return the dual that extends to the queries, or to the keys."""
    return (duals.cols if of_queries else duals.rows)[:, :, -1]


@torch.library.custom_op("asap_exp::coarse_dual_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    q_tokens: Tensor,
    q_weight: Tensor,
    k_tokens: Tensor,
    k_weight: Tensor,
    padding: Tensor | None,
    result: Tensor,
    rows: Tensor,
    cols: Tensor,
    of_queries: bool,
    num_iters: int,
    slope: float,
    products: str,
) -> tuple[Tensor, Tensor]:
    if not result.numel() or (of_queries and num_iters == 1):
        return q.new_zeros(q.shape), k.new_zeros(k.shape)
    p = Launch.of(q, k, k, padding, num_iters, slope, products)
    subset, key_subset = Subset(q_tokens, q_weight), Subset(k_tokens, k_weight)
    # All tokens of one side have a gradient; on the other only those of the subset.
    grad_q = q.new_empty(q.shape) if of_queries else q.new_zeros(q.shape)
    grad_k = k.new_zeros(k.shape) if of_queries else k.new_empty(k.shape)
    duals = SubsetDuals(rows, cols)
    sides = Sides(p, key_subset if of_queries else subset, of_queries=of_queries)
    with torch.cuda.device_of(q):
        of_dual, of_tokens = extension.launch_gradient(
            p, sides, last_of(duals, of_queries), result * LOG2_E, grad.contiguous(),
            grad_q if of_queries else grad_k,
        )  # fmt: skip
        updates_gradient.launch(
            p, subset, key_subset, duals, of_dual, of_tokens, (grad_q, grad_k),
            of_rows=not of_queries,
        )  # fmt: skip
    return grad_q, grad_k


@_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    q_tokens: Tensor,
    q_weight: Tensor,
    k_tokens: Tensor,
    k_weight: Tensor,
    padding: Tensor | None,
    result: Tensor,
    rows: Tensor,
    cols: Tensor,
    of_queries: bool,
    num_iters: int,
    slope: float,
    products: str,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors_, ctx.of_queries, ctx.num_iters, ctx.slope, _, ctx.products = inputs
    _, rows, cols = output
    ctx.mark_non_differentiable(rows, cols)
    ctx.save_for_backward(*tensors_, *output)


def _backward(ctx, grad, *_):
    options = ctx.of_queries, ctx.num_iters, ctx.slope, ctx.products
    return *_backward_op(grad, *ctx.saved_tensors, *options), *[None] * 10


_coarse_dual.register_autograd(_backward, setup_context=_setup_context)
