"""Updates of a predicted dual, plain or relaxed, and its closure, in launches of their own."""

from typing import Any

from torch import Tensor

from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.sinkhorn.op import sinkhorn
from asap_exp.ops.kernels.tiles import LOG2_E
from asap_exp.ops.masking import effective_padding
from asap_exp.ops.reference.sinkhorn import logits, update


def refined_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    f_hat: Tensor,
    *,
    refine: int,
    relaxation: Tensor | float | None,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """The closure of `f_hat` `[B, H, N]` after `refine` updates, `[B, H, N, width of v]`.

    Where a gradient is needed the reference makes relaxed updates, with logits in memory.
    """
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
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
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """f after `refine` updates, `[B, H, N]`; plain ones have no gradient."""
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    if relaxation is None:
        return updated(q, k, f, refine, **options) if refine > 0 else f
    if gradient_needed(q, k, f, relaxation if isinstance(relaxation, Tensor) else None):
        S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
        return update(S, f, refine, effective_padding(key_padding_mask), relaxation)
    weight = relaxation.float()[:, None] if isinstance(relaxation, Tensor) else relaxation
    for _ in range(refine):
        f = f + weight * (updated(q, k, f, 1, **options) - f)
    return f


def updated(q: Tensor, k: Tensor, f: Tensor, num_iters: int, **options: Any) -> Tensor:
    """f after so many plain updates, `[B, H, N]`; no gradient."""
    no_values = k[..., :0]
    rows = sinkhorn(q, k, no_values, f, num_iters=num_iters, keep_duals=True, **options).rows
    return rows[:, :, -1] / LOG2_E
