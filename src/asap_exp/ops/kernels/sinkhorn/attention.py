"""The teacher, its duals and the closure on the fused operator `sinkhorn`."""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.launch import Problem, unwritten_output
from asap_exp.ops.kernels.sinkhorn import forward
from asap_exp.ops.kernels.sinkhorn.op import on_chip, sinkhorn
from asap_exp.ops.kernels.sinkhorn.updates import refined_attention
from asap_exp.ops.kernels.tiles import LOG2_E
from asap_exp.ops.masking import blank
from asap_exp.ops.reference.sinkhorn import SinkhornDuals


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


def relaxed_sinkhorn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_iters: int,
    relaxation: float,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """One launch where logits stay on chip and no gradient is needed; else several an update."""
    if on_chip(q, k, v) and not gradient_needed(q, k, v):
        return _relaxed_sinkhorn(q, k, v, key_padding_mask, num_iters, relaxation, scale / eps)
    start = q.new_zeros(q.shape[:3], dtype=torch.float32)
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    return refined_attention(q, k, v, start, refine=num_iters - 1, relaxation=relaxation, **options)


@torch.library.custom_op("asap_exp::relaxed_sinkhorn", mutates_args=())
def _relaxed_sinkhorn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    num_iters: int,
    relaxation: float,
    slope: float,
) -> Tensor:
    out = unwritten_output(q, v)
    if out.numel():
        with torch.cuda.device_of(q):
            problem = Problem.of(q, k, v, padding, num_iters, slope)
            forward.on_chip(problem, None, out, None, None, save=False, relaxation=relaxation)
    return out


@_relaxed_sinkhorn.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    num_iters: int,
    relaxation: float,
    slope: float,
) -> Tensor:
    return unwritten_output(q, v)


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
