"""softmax_j(S + col) v as one operator with a gradient: flash attention with a bias per key."""

import torch
from torch import Tensor

from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.coarse.query_gradient import query_gradient
from asap_exp.ops.kernels.launch import Launch, unwritten_output
from asap_exp.ops.kernels.sinkhorn import tiled
from asap_exp.ops.kernels.sinkhorn.passes import launch_attention_pass
from asap_exp.ops.kernels.sinkhorn.tiled_gradient import through_values
from asap_exp.ops.kernels.tiles import LOG2_E, unit_stride


def biased_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor,
    padding: Tensor | None,
    slope: float,
    products: str,
) -> Tensor:
    """Return softmax_j(S + col) v `[B, H, N, width of v]`; `col` `[B, H, M]` in natural units."""
    save = gradient_needed(q, k, v, col)
    return _biased_softmax(q, k, v, col, padding, slope, save, products)[0]


@torch.library.custom_op("asap_exp::biased_softmax", mutates_args=())
def _biased_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor,
    padding: Tensor | None,
    slope: float,
    save: bool,
    products: str,
) -> tuple[Tensor, Tensor]:
    out, row = _results(q, v, save)
    if out.numel():
        with torch.cuda.device_of(q):
            p = Launch.of(q, k, v, padding, 1, slope, products)
            if save:  # the gradient needs the logits of the same passes
                tiled.attention(p, col.contiguous() * LOG2_E, None, out, row, save=True)
            else:
                launch_attention_pass(p, col.contiguous(), None, out)
    return out, row


@_biased_softmax.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor,
    padding: Tensor | None,
    slope: float,
    save: bool,
    products: str,
) -> tuple[Tensor, Tensor]:
    return _results(q, v, save)


def _results(q: Tensor, v: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """Allocate the output and, with `save`, the row dual in units of log 2."""
    batch, heads, n = q.shape[:3]
    row = q.new_empty(batch, heads, n if save else 0, dtype=torch.float32)
    return unwritten_output(q, v), row


@torch.library.custom_op("asap_exp::biased_softmax_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor,
    padding: Tensor | None,
    out: Tensor,
    row: Tensor,
    slope: float,
    products: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not (grad_out.numel() and k.numel()):
        return (*(x.new_zeros(x.shape) for x in (q, k, v)), torch.zeros_like(col))  # type: ignore[return-value]
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    with torch.cuda.device_of(q):
        p = Launch.of(q, k, v, padding, 1, slope, products)
        grad_out, col = unit_stride(grad_out), col.contiguous() * LOG2_E
        delta = query_gradient(p, grad_out, out, row, col, grad_q)
        grad_col = through_values(p, grad_out, delta, row, col, grad_v, grad_k)
    return grad_q, grad_k, grad_v, grad_col


@_backward_op.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, col: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*(x.new_empty(x.shape) for x in (q, k, v)), torch.empty_like(col))  # type: ignore[return-value]


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, col, padding, ctx.slope, _, ctx.products = inputs
    out, row = output
    ctx.mark_non_differentiable(row)
    ctx.save_for_backward(q, k, v, col, padding, out, row)


def _backward(ctx, grad_out, _):
    grads = _backward_op(grad_out, *ctx.saved_tensors, ctx.slope, ctx.products)
    return *grads, None, None, None, None


_biased_softmax.register_autograd(_backward, setup_context=_setup_context)
