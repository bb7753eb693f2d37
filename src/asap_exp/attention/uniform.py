"""Uniform attention: every query averages all values. Mainly a control."""

import torch
from torch import Tensor

from asap_exp.attention.base import Attention, padded_pairs, register


@register("uniform")
class UniformAttention(Attention):
    """Mean of the valid values for every query."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        if key_padding_mask is None:
            return v.mean(dim=2, keepdim=True).expand(-1, -1, q.shape[2], -1)
        padded = key_padding_mask[:, None, :, None]
        num_valid = (~padded).sum(dim=2, keepdim=True).clamp(min=1)
        mean = v.masked_fill(padded, 0.0).sum(dim=2, keepdim=True) / num_valid
        return mean.to(v.dtype).expand(-1, -1, q.shape[2], -1).masked_fill(padded, 0.0)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        plan = torch.ones(*q.shape[:3], k.shape[2], device=q.device)
        if key_padding_mask is not None:
            padded = padded_pairs(key_padding_mask)
            plan = plan.masked_fill(padded, 0.0)
        return plan / plan.sum(dim=-1, keepdim=True).clamp(min=1)
