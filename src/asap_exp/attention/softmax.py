"""Row softmax attention: no column step at all."""

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.attention.base import Attention, padded_pairs, register


@register("softmax")
class SoftmaxAttention(Attention):
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        if key_padding_mask is None:
            return F.scaled_dot_product_attention(q, k, v)
        q, k, v = (select_valid(x, key_padding_mask) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attended(key_padding_mask))
        return select_valid(out, key_padding_mask)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            q, k = (select_valid(x, key_padding_mask) for x in (q, k))
        S = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
        if key_padding_mask is None:
            return S.softmax(dim=-1)
        plan = S.masked_fill(~attended(key_padding_mask), float("-inf")).softmax(dim=-1)
        padded = padded_pairs(key_padding_mask)
        return plan.masked_fill(padded, 0.0)


def select_valid(x: Tensor, key_padding_mask: Tensor) -> Tensor:
    """`x` `[B, H, N, D]`, 0 at padded tokens whatever stood there."""
    return x.masked_fill(key_padding_mask[:, None, :, None], 0.0)


def attended(key_padding_mask: Tensor) -> Tensor:
    """`[B, 1, 1, N]`, True = takes part; a sample with no valid token attends to all its zeros."""
    empty = key_padding_mask.all(dim=-1, keepdim=True)
    return torch.logical_or(~key_padding_mask, empty)[:, None, None, :]
