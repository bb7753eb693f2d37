"""The teacher, its duals and the closure on the fused operator `sinkhorn`."""

from torch import Tensor

from asap_exp.ops.reference._masking import blank
from asap_exp.ops.reference.sinkhorn import SinkhornDuals
from asap_exp.ops.triton.sinkhorn import sinkhorn
from asap_exp.ops.triton.tiles import LOG2_E


def sinkhorn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    return sinkhorn(
        q, k, v, None, num_iters=num_iters, eps=eps, scale=scale, key_padding_mask=key_padding_mask
    ).out


def closure_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_dual: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    return sinkhorn(
        q, k, v, row_dual, num_iters=1, eps=eps, scale=scale, key_padding_mask=key_padding_mask
    ).out


def sinkhorn_duals(
    q: Tensor,
    k: Tensor,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> SinkhornDuals:
    """No gradient."""
    _, rows, cols = sinkhorn(
        q,
        k,
        k[..., :0],  # no values: the duals alone are wanted
        None,
        num_iters=num_iters,
        eps=eps,
        scale=scale,
        key_padding_mask=key_padding_mask,
        keep_duals=True,
    )
    duals = (rows[:, :, -2], rows[:, :, -1], cols[:, :, -1])
    return SinkhornDuals(*(blank(dual / LOG2_E, key_padding_mask, 2) for dual in duals))
