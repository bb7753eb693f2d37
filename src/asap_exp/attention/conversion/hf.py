"""Hugging Face's BERT and ViT attention (transformers)."""

from typing import Any

import torch
from torch import Tensor
from transformers.models.bert import modeling_bert
from transformers.models.vit import modeling_vit

from asap_exp.attention.conversion.adopted import Adopted, unusual_scale
from asap_exp.core.errors import UserError

MASKED_BELOW = -1e4
"""Additive masks of transformers hold 0 and the lowest number of a dtype."""


class HuggingFaceAttention(Adopted):
    """Attention that returns its output and, with attn_implementation="eager", the plan."""

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        if module.is_causal or getattr(module.config, "is_decoder", False):
            return "it is causal, and the identity is the only causal doubly-stochastic plan"
        return super().obstacle(module) or unusual_scale(module.scaling, cls.width_of(module))

    @staticmethod
    def width_of(module: Any) -> int:
        """Return the width of a head."""
        return module.head_dim

    def complete(self: Any) -> None:
        self.num_heads = self.num_attention_heads
        self.head_dim = self.width_of(self)

    def attended_of(self: Any, x: Tensor, mask: Tensor | None, parts: tuple[Any, ...]) -> tuple:
        """Attend with q, k and v that `parts` project from `x`; return the output and the plan."""
        heads = (self.num_heads, self.head_dim)
        q, k, v = (part(x).unflatten(-1, heads).transpose(1, 2) for part in parts)
        options: dict[str, Any] = {}
        if mask is not None:
            as_bias = isinstance(mask, Tensor) and mask.dim() == 4 and self.attend.takes_bias
            options = {"bias": mask} if as_bias else {"key_padding_mask": padding_of(mask)}
        out = self.attended(q, k, v, **options)
        if self.config._attn_implementation == "eager":
            return out, self.attend.plan(q, k, **options)
        return out, None


def padding_of(mask: Any) -> Tensor:
    """Return the padded tokens `[B, N]` of a mask `[B, 1, N, N]` that transformers made.

    UserError if queries have masks that differ: then it is more than padding. While a model is
    compiled or exported, only a mask that is expanded over the queries shows that it is not.
    """
    if not isinstance(mask, Tensor):
        raise UserError(
            f"the model makes masks of type {type(mask).__name__}; load it with "
            'attn_implementation="sdpa" or "eager"'
        )
    if mask.dim() == 2:  # as for flash attention: 1 for a token
        return ~mask.bool()
    rows = mask[:, 0]
    expanded = rows.shape[1] == 1 or rows.stride(1) == 0
    if not expanded and not torch.compiler.is_compiling() and not (rows == rows[:, :1]).all():
        raise UserError(
            "an attention_mask that differs between queries is possible with softmax attention "
            "alone; give one of padding, [batch, tokens]"
        )
    first = rows[:, 0]
    return ~first if first.dtype == torch.bool else first < MASKED_BELOW


def refuse_cache(more: dict[str, Any]) -> None:
    if any(more.get(name) is not None for name in ("cache", "past_key_values")):
        raise UserError("a cache of keys and values belongs to causal attention")


class BertSelfAttention(HuggingFaceAttention, modeling_bert.BertSelfAttention):
    """`BertSelfAttention` of an encoder."""

    parts = frozenset({"query", "key", "value", "dropout"})

    @staticmethod
    def width_of(module: Any) -> int:
        return module.attention_head_size

    @property
    def attention_dropout_rate(self) -> float:
        return self.dropout.p

    @attention_dropout_rate.setter
    def attention_dropout_rate(self, rate: float) -> None:
        self.dropout = torch.nn.Dropout(rate)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        refuse_cache(more)
        return self.attended_of(hidden_states, attention_mask, (self.query, self.key, self.value))


class ViTAttention(HuggingFaceAttention, modeling_vit.ViTAttention):
    """`ViTAttention`."""

    parts = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})

    @property
    def attention_dropout_rate(self) -> float:
        return self.attention_dropout

    @attention_dropout_rate.setter
    def attention_dropout_rate(self, rate: float) -> None:
        self.attention_dropout = rate

    def forward(  # type: ignore[override, unused-ignore]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        parts = (self.q_proj, self.k_proj, self.v_proj)
        out, plan = self.attended_of(hidden_states, attention_mask, parts)
        return self.o_proj(out), plan
