"""Row softmax attention by PyTorch's fused operator, with padding as everywhere in `ops`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.ops.masking import blank, effective_padding
from asap_exp.ops.reference.sinkhorn import average_values, logits, one_pass


def attended(key_padding_mask: Tensor) -> Tensor:
    """Return the mask `[B, 1, 1, N]`, True = attended to; all True without a valid token."""
    empty = key_padding_mask.all(dim=-1, keepdim=True)
    return torch.logical_or(~key_padding_mask, empty)[:, None, None, :]


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float, scale: float, key_padding_mask: Tensor | None
) -> Tensor:
    dtype = torch.promote_types(q.dtype, v.dtype)
    result = v.dtype
    q, k, v = (blank(x, key_padding_mask, 2).to(dtype) for x in (q, k, v))
    mask = None if key_padding_mask is None else attended(key_padding_mask)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale / eps)
    return blank(out, key_padding_mask, 2).to(result)


def plain_softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float, scale: float, key_padding_mask: Tensor | None
) -> Tensor:
    """Compute it with the logits in memory: PyTorch's operators have first derivatives only."""
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    zeros = S.new_zeros(S.shape[:2] + S.shape[-1:])
    A = one_pass(S, zeros, effective_padding(key_padding_mask))
    return average_values(A, v, key_padding_mask)


def biased_softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """Compute softmax attention with `bias` on the logits and `dropout` of its weights.

    `bias` broadcasts to `[B, H, N, M]`; a boolean one is True where a query attends to a key.
    """
    dtype, result = torch.promote_types(q.dtype, v.dtype), v.dtype
    q, k, v = (blank(x, key_padding_mask, 2).to(dtype) for x in (q, k, v))
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(dtype)
    if key_padding_mask is not None:
        valid = attended(key_padding_mask)
        if bias is None:
            bias = valid
        elif bias.dtype == torch.bool:
            bias = bias & valid
        else:
            bias = bias.masked_fill(~valid, float("-inf"))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return blank(out, key_padding_mask, 2).to(result)
