"""Finite-T Sinkhorn attention as one custom operator with a gradient, for teachers and closures.

For the gradient, the duals of the updates through which it is taken are kept: O((n + m) T) numbers,
nothing of size n x m. The implicit gradient needs those of the last update alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.launch import Duals, Launch, unwritten_output
from asap_exp.ops.kernels.tiles import unit_stride
from asap_exp.ops.masking import blank
from asap_exp.ops.products import AS_ALLOWED
from asap_exp.ops.routing import choose


class Solution(NamedTuple):
    """Result of `sinkhorn`: out `[B, H, N, width of v]` and the duals, in units of log 2.

    `rows` `[B, H, T + 1, N]` are f^0 .. f^T, `cols` `[B, H, T, M]` are g^1 .. g^T, or the last of
    them, if fewer updates have a gradient; both are empty (`[B, H, 0, ..]`) unless requested.
    """

    out: Tensor
    rows: Tensor
    cols: Tensor


def sinkhorn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    keep_duals: bool = False,
    gradient_updates: int | None = None,
    implicit_steps: int = 0,
    products: str = AS_ALLOWED,
) -> Solution:
    """Run `num_iters` updates from f^0 = `start` (zeros if None) and multiply the plan with v.

    Pass values of width 0 to compute the duals alone. `products` are those of float32 matrices. The
    result is differentiable in q, k, v and `start`; the duals carry no gradient. With
    `gradient_updates`, the gradient is that of as many updates, the last, and with `implicit_steps`
    the implicit one; `start` then has none.
    """
    save = keep_duals or gradient_needed(q, k, v, start)
    start = None if start is None else blank(start.float(), key_padding_mask, 2)
    through = 1 if implicit_steps else gradient_updates or num_iters
    numbers = num_iters, through, scale / eps, save, implicit_steps
    return Solution(*_sinkhorn(q, k, v, start, key_padding_mask, *numbers, products))


@torch.library.custom_op("asap_exp::sinkhorn", mutates_args=())
def _sinkhorn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    padding: Tensor | None,
    num_iters: int,
    through: int,
    slope: float,
    save: bool,
    implicit_steps: int,
    products: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.numel() == 0:
        return _results(q, v, through, save)
    out, rows, cols = _results(q, v, num_iters, save)
    start = None if start is None else start.contiguous()
    with torch.cuda.device_of(q):
        launch = Launch.of(q, k, v, padding, num_iters, slope, products)
        route = choose("sinkhorn", launch.call(keeps_duals=save))
        route.launch(launch, start, out, Duals(rows, cols) if save else None)
    if save and through < num_iters:  # the others are not to be kept until the backward pass
        last = rows[:, :, -through - 1 :], cols[:, :, -through:]
        rows, cols = (duals.clone(memory_format=torch.contiguous_format) for duals in last)
    return out, rows, cols


@_sinkhorn.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    padding: Tensor | None,
    num_iters: int,
    through: int,
    slope: float,
    save: bool,
    implicit_steps: int,
    products: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(q, v, through, save)


def _results(q: Tensor, v: Tensor, num_iters: int, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs."""
    batch, heads, n, _ = q.shape
    m = v.shape[2]
    kept = num_iters if save else -1
    rows = q.new_empty(batch, heads, kept + 1, n, dtype=torch.float32)
    cols = q.new_empty(batch, heads, max(kept, 0), m, dtype=torch.float32)
    return unwritten_output(q, v), rows, cols


@torch.library.custom_op("asap_exp::sinkhorn_backward", mutates_args=())
def _sinkhorn_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    num_iters: int,
    slope: float,
    implicit_steps: int,
    products: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _gradients(q, k, v)
    if grad_out.numel() == 0:
        return grads
    with torch.cuda.device_of(q):
        launch = Launch.of(q, k, v, padding, num_iters, slope, products)
        results = unit_stride(grad_out), Duals(rows, cols), grads
        call = launch.call(keeps_duals=True)
        if implicit_steps:
            choose("implicit_backward", call).launch(launch, *results, implicit_steps)
        else:
            choose("sinkhorn_backward", call).launch(launch, *results)
    return grads


@_sinkhorn_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(q, k, v)


def _gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the gradients of q, k, v and f^0."""
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    return grad_q, grad_k, grad_v, q.new_empty(q.shape[:3], dtype=torch.float32)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, start, padding, num_iters, ctx.through, ctx.slope, _, *rest = inputs
    ctx.implicit_steps, ctx.products = rest
    ctx.start_has_gradient = start is not None and ctx.through == num_iters and not rest[0]
    _, rows, cols = output
    ctx.mark_non_differentiable(rows, cols)
    ctx.save_for_backward(q, k, v, padding, rows, cols)


def _backward(ctx, grad_out, *_):
    q, k, v, padding, rows, cols = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_start = _sinkhorn_backward(
        grad_out, q, k, v, padding, rows, cols,
        ctx.through, ctx.slope, ctx.implicit_steps, ctx.products,
    )  # fmt: skip
    return (
        grad_q, grad_k, grad_v, grad_start if ctx.start_has_gradient else None,
        None, None, None, None, None, None, None,
    )  # fmt: skip


_sinkhorn.register_autograd(_backward, setup_context=_setup_context)
