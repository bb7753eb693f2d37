"""timm's attention with rotary positions: `AttentionRope`, and EVA's with biases apart."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.layers.attention import AttentionRope
from timm.models import eva
from torch import Tensor

from asap_exp.attention.conversion.adopted import Adopted, unusual_scale
from asap_exp.attention.conversion.timm_plain import NORMS, OUTPUT
from asap_exp.attention.layer import normalised, output

PROJECTIONS = frozenset({"qkv", "q_proj", "k_proj", "v_proj"})
BIASES = frozenset({"q_bias", "k_bias", "v_bias"})


class Rotary(Adopted):
    """Attention whose queries and keys are rotated by their position."""

    parts = frozenset({"attn_drop"}) | PROJECTIONS | NORMS | OUTPUT

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        width = (module.q_proj if module.qkv is None else module.qkv).out_features
        head_dim = width // module.num_heads // (1 if module.qkv is None else 3)
        return super().obstacle(module) or unusual_scale(module.scale, head_dim)

    def forward(
        self: Any,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.projected(x)
        q, k = normalised(self.q_norm, q), normalised(self.k_norm, k)
        if rope is not None:
            q, k = (self.rotated(t, rope).type_as(v) for t in (q, k))
        groups = self.num_heads // k.shape[1]
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        out = self.attended(
            q, k, v, key_padding_mask=key_padding_mask, bias=attn_mask, is_causal=is_causal
        )
        return output(self, x, out)

    def projected(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        """Return q `[B, H, N, D]`, k and v, which may have fewer heads."""
        if self.qkv is None:
            parts = [proj(x) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        else:
            parts = list(self.in_one(x).chunk(3, dim=-1))
        return tuple(t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in parts)

    def in_one(self: Any, x: Tensor) -> Tensor:
        return self.qkv(x)

    def rotated(self: Any, x: Tensor, rope: Tensor) -> Tensor:
        """Rotate all tokens of `x` `[B, H, N, D]` but the class and register tokens."""
        first = self.num_prefix_tokens
        half = getattr(self, "rotate_half", False)  # EVA02 of older checkpoints has none
        turned = apply_rot_embed_cat(x[:, :, first:], rope, half=half)
        return torch.cat([x[:, :, :first], turned], dim=2)


class RopeAttention(Rotary, AttentionRope):
    """`timm.layers.AttentionRope`, that of ViTs with rotary positions."""


class EvaAttention(Rotary, eva.EvaAttention):
    """`timm.models.eva.EvaAttention`, that of EVA02, which has no bias on keys."""

    parts = Rotary.parts | BIASES

    def complete(self) -> None:
        width = (self.q_proj if self.qkv is None else self.qkv).out_features
        self.head_dim = width // self.num_heads // (1 if self.qkv is None else 3)

    def in_one(self, x: Tensor) -> Tensor:
        return linear_with_biases(self, x)


def linear_with_biases(layer: Any, x: Tensor) -> Tensor:
    """Project to q, k and v with `q_bias`, `k_bias` and `v_bias`, where the layer has them."""
    if layer.q_bias is None:
        return layer.qkv(x)
    bias = torch.cat((layer.q_bias, layer.k_bias, layer.v_bias))
    if layer.qkv_bias_separate:
        return layer.qkv(x) + bias
    return F.linear(x, layer.qkv.weight, bias)
