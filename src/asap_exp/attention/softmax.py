"""Row softmax attention, without a column step."""

from torch import Tensor

from asap_exp.attention.base import Attention, padded_pairs, register
from asap_exp.ops import softmax_attention
from asap_exp.ops.reference import logits
from asap_exp.ops.reference.softmax import attended


@register("softmax")
class SoftmaxAttention(Attention):
    """Row softmax of the logits, the usual attention; its columns sum to anything."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        return softmax_attention(q, k, v, key_padding_mask=key_padding_mask)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        scale = q.shape[-1] ** -0.5
        S = logits(q, k, eps=1.0, scale=scale, mask=key_padding_mask)
        if key_padding_mask is None:
            return S.softmax(dim=-1)
        plan = S.masked_fill(~attended(key_padding_mask), float("-inf")).softmax(dim=-1)
        return plan.masked_fill(padded_pairs(key_padding_mask), 0.0)
