"""timm's plain attention, that of ViT, DeiT, FlexiViT and others."""

from typing import Any

from asap_exp.attention.conversion.adopted import Adopted, unusual_scale
from asap_exp.attention.layer import MultiHeadAttention

NORMS = frozenset({"q_norm", "k_norm", "norm"})
OUTPUT = frozenset({"gate", "proj", "proj_drop"})


class PlainAttention(Adopted, MultiHeadAttention):
    """`timm.layers.Attention`, which `MultiHeadAttention` has the names of."""

    parts = frozenset({"qkv", "attn_drop"}) | NORMS | OUTPUT

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        return super().obstacle(module) or unusual_scale(module.scale, module.head_dim)
