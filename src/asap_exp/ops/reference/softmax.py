"""Row softmax attention by PyTorch's fused operator, with padding as everywhere in `ops`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.ops.masking import blank


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
