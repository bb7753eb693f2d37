"""Row softmax of padded tokens: the closing attention pass, its keys' dual zero. No gradient.

PyTorch's flash kernels take no padding mask, and what it has instead is several times as slow.
"""

import torch
from torch import Tensor

from asap_exp.ops import reference
from asap_exp.ops.kernels.launch import Problem, unwritten_output
from asap_exp.ops.kernels.sinkhorn import forward, inference
from asap_exp.ops.kernels.tiles import LOG2_E


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float, scale: float, key_padding_mask: Tensor | None
) -> Tensor:
    """The reference where its kernels are the faster ones: without padding, and in float32."""
    if key_padding_mask is None or torch.float32 in (q.dtype, v.dtype):
        return reference.softmax_attention(
            q, k, v, eps=eps, scale=scale, key_padding_mask=key_padding_mask
        )
    return _softmax(q, k, v, key_padding_mask, scale / eps)


@torch.library.custom_op("asap_exp::softmax", mutates_args=())
def _softmax(q: Tensor, k: Tensor, v: Tensor, padding: Tensor, slope: float) -> Tensor:
    out = unwritten_output(q, v)
    if out.numel():
        with torch.cuda.device_of(q):
            attention_with_bias(Problem.of(q, k, v, padding, 1, slope), None, out)
    return out


@_softmax.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, padding: Tensor, slope: float) -> Tensor:
    return unwritten_output(q, v)


def attention_with_bias(
    problem: Problem, dual: Tensor | None, out: Tensor, *, row: Tensor | None = None
) -> None:
    """Writes softmax_j(S + dual) v; `dual` `[B, H, M]` in natural units, None for zeros.

    `row` `[B, H, N]` is about minus the logs of the sums (None for zeros): what shifts them where
    no running maximum is kept, unread elsewhere.
    """
    p = problem
    if inference.takes(p):
        queries, keys = inference.Side(p.q), inference.Side(p.k)
        inference.set_dual(p, queries, row)
        inference.set_dual(p, keys, dual)
        inference.attention(p, queries, keys, out)
    else:
        zeros = p.q.new_zeros(*p.k.shape[:3], dtype=torch.float32)
        col = zeros if dual is None else dual * LOG2_E
        forward.attention(p, col, None, out, col, save=False)
