"""timm's attention with a relative position bias: BEiT's, and Swin's in windows."""

from typing import Any

from timm.models import beit, swin_transformer
from torch import Tensor

from asap_exp.attention.conversion.adopted import Adopted, unusual_scale
from asap_exp.attention.conversion.timm_rope import BIASES, linear_with_biases

TABLE = frozenset({"relative_position_bias_table", "relative_position_index"})


class Biased(Adopted):
    """Attention that adds a table of learned biases to the logits, by relative position."""

    parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"}) | TABLE

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        head_dim = module.qkv.out_features // 3 // module.num_heads
        return super().obstacle(module) or unusual_scale(module.scale, head_dim)

    def complete(self: Any) -> None:
        self.head_dim = self.qkv.out_features // 3 // self.num_heads

    @property
    def logit_bias(self: Any) -> str | None:
        known = self.relative_position_bias_table is not None
        return "a learned relative position bias" if known else None

    def attended_with(self: Any, qkv: Tensor, bias: Tensor | None) -> Tensor:
        """Attend with q, k and v side by side in `qkv` `[B, N, 3 H D]`, and project."""
        parts = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        q, k, v = (t.transpose(1, 2) for t in parts)
        return self.proj_drop(self.proj(self.attended(q, k, v, bias=bias)))


class BeitAttention(Biased, beit.Attention):
    """`timm.models.beit.Attention`; the bias may also be one that all layers share."""

    parts = Biased.parts | BIASES

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own = self._get_rel_pos_bias()
            bias = own if bias is None else own + bias
        return self.attended_with(linear_with_biases(self, x), bias)


class SwinAttention(Biased, swin_transformer.WindowAttention):
    """`timm.models.swin_transformer.WindowAttention`, on windows `[B * windows, N, dim]`."""

    parts = Biased.parts | {"softmax"}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` `[windows, N, N]` is 0 or -inf, for windows of a shifted image."""
        bias = self._get_rel_pos_bias()
        if mask is not None:
            bias = bias + mask[:, None].repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        return self.attended_with(self.qkv(x), bias)
