"""Updates of a row dual, plain or relaxed, and its closure, by calls of the Sinkhorn operator."""

from typing import Any

from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.sinkhorn.op import sinkhorn
from asap_exp.ops.kernels.tiles import LOG2_E
from asap_exp.ops.masking import effective_padding
from asap_exp.ops.products import IEEE
from asap_exp.ops.reference.sinkhorn import logits, update
from asap_exp.ops.routing import choose


def refined_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    f_hat: Tensor,
    *,
    refine: int,
    relaxation: Tensor | float | None,
    **options: Any,
) -> Tensor:
    """Return the closure of `f_hat` `[B, H, N]` after `refine` updates, `[B, H, N, width of v]`.

    `options` are eps, scale, key_padding_mask and the products of float32 matrices. If a gradient
    is needed, the reference runs the relaxed updates, with the logits in memory.
    """
    if relaxation is not None:
        f_hat = refined_dual(q, k, f_hat, refine, relaxation, **options)
        refine = 0
    return sinkhorn(q, k, v, f_hat, num_iters=refine + 1, **options).out


def refined_dual(
    q: Tensor,
    k: Tensor,
    f: Tensor,
    refine: int,
    relaxation: Tensor | float | None,
    **options: Any,
) -> Tensor:
    """Return f after `refine` updates, `[B, H, N]`; plain updates have no gradient."""
    if refine == 0:
        return f
    if relaxation is None:
        return updated(q, k, f, refine, **options)
    gradient = gradient_needed(q, k, f, relaxation if isinstance(relaxation, Tensor) else None)
    call = Call(
        q.shape[2], k.shape[2], q.shape[3], 0, q.dtype, k.dtype,
        gradient=gradient, refine=refine, relaxed=True,
    )  # fmt: skip
    return choose("relaxed_updates", call).launch(q, k, f, refine, relaxation, **options)


def no_gradient(call: Call) -> str | None:
    """Return why the operator does not run these relaxed updates, or None if it does."""
    return "has no gradient of the duals" if call.gradient else None


def one_call_per_update(
    q: Tensor, k: Tensor, f: Tensor, refine: int, relaxation: Tensor | float, **options: Any
) -> Tensor:
    """Return f after `refine` relaxed updates, `[B, H, N]`; no gradient."""
    weight = relaxation.float()[:, None] if isinstance(relaxation, Tensor) else relaxation
    for _ in range(refine):
        f = f + weight * (updated(q, k, f, 1, **options) - f)
    return f


def reference_updates(
    q: Tensor,
    k: Tensor,
    f: Tensor,
    refine: int,
    relaxation: Tensor | float,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    products: str = IEEE,
) -> Tensor:
    """Return f after `refine` relaxed updates, `[B, H, N]`, with the logits in memory.

    PyTorch multiplies, as it is set to, whatever `products` says.
    """
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    return update(S, f, refine, effective_padding(key_padding_mask), relaxation)


def updated(q: Tensor, k: Tensor, f: Tensor | None, num_iters: int, **options: Any) -> Tensor:
    """Return f, zeros if None, after `num_iters` plain updates, `[B, H, N]`; no gradient."""
    no_values = k[..., :0]
    rows = sinkhorn(q, k, no_values, f, num_iters=num_iters, keep_duals=True, **options).rows
    return rows[:, :, -1] / LOG2_E
