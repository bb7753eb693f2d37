"""Row softmax attention, without a column step."""

import torch
from torch import Tensor

from asap_exp.attention.base import Attention, padded_pairs, register
from asap_exp.ops import softmax_attention
from asap_exp.ops.backend import full_precision
from asap_exp.ops.reference import logits
from asap_exp.ops.reference.softmax import attended, biased_softmax_attention


@register("softmax")
class SoftmaxAttention(Attention):
    """Row softmax of the logits, the usual attention; its columns sum to anything.

    `bias`, which broadcasts to `[B, H, N, M]`, is added to the logits, or is boolean and True where
    a query attends to a key. `dropout` is the share of the attention weights that is dropped.
    """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        if bias is None and not dropout:
            return softmax_attention(q, k, v, key_padding_mask=key_padding_mask)
        with full_precision(q):
            return biased_softmax_attention(q, k, v, key_padding_mask, bias, dropout)

    def plan(
        self,
        q: Tensor,
        k: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        scale = q.shape[-1] ** -0.5
        S = logits(q, k, eps=1.0, scale=scale, mask=key_padding_mask)
        if bias is not None:
            boolean = bias.dtype == torch.bool
            S = S.masked_fill(~bias, float("-inf")) if boolean else S + bias
        if key_padding_mask is None:
            return S.softmax(dim=-1)
        plan = S.masked_fill(~attended(key_padding_mask), float("-inf")).softmax(dim=-1)
        return plan.masked_fill(padded_pairs(key_padding_mask), 0.0)
