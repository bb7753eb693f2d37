"""Hedgehog's attention: a linear attention whose feature maps learn to imitate softmax.

The formulas are those of `asap_exp.ops.reference.hedgehog`. The matrices of the maps, one for
queries and one for keys in each head, are learned with the model, or fitted to a trained softmax
teacher by `distill calibration=hedgehog`. They start as the identity, as published.

Source: The Hedgehog & the Porcupine, arXiv 2402.04347.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from asap_exp.attention.base import register
from asap_exp.attention.learned import LearnedAttention
from asap_exp.ops.backend import full_precision
from asap_exp.ops.checks import check_mask, check_query_key, check_value
from asap_exp.ops.masking import compute_dtype
from asap_exp.ops.reference.hedgehog import hedgehog_attention, hedgehog_plan


@register("hedgehog")
class HedgehogAttention(LearnedAttention):
    """Attention by positive features of queries and keys, in time and memory linear in the tokens.

    Rows of its plan sum to 1; columns sum to anything.
    """

    parameter_names = ("query_map", "key_map")

    def start(self, heads: int, head_dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        like = normal(1)  # says on which device, or that shapes alone are asked for
        eye = torch.eye(head_dim, device=like.device).expand(heads, -1, -1)
        return {name: eye.clone() for name in self.parameter_names}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        check_query_key(q, k)
        check_value(v, k)
        check_mask(key_padding_mask, q, k)
        with full_precision(q):
            return hedgehog_attention(q, k, v, *self.maps(q), key_padding_mask=key_padding_mask)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        check_query_key(q, k)
        check_mask(key_padding_mask, q, k)
        with full_precision(q):
            return hedgehog_plan(q, k, *self.maps(q), key_padding_mask=key_padding_mask)

    def maps(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matrices of queries and of keys, `[H, D, D]` each."""
        learned = self.learned(q, compute_dtype(q))
        return learned["query_map"], learned["key_map"]
