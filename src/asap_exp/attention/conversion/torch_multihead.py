"""`torch.nn.MultiheadAttention`, alone and in `nn.TransformerEncoder` and `nn.Transformer`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap_exp.attention.conversion.adopted import Adopted
from asap_exp.core.errors import UserError

PADDED_BELOW = -1e4
"""A float mask with less than this takes a key out: its weight is 0 in every precision."""


class TorchMultiheadAttention(Adopted, nn.MultiheadAttention):
    """Attention that is called as `torch.nn.MultiheadAttention` is.

    The keys' padding mask counts for the queries too, if these are the same tensor. With another
    attention than softmax, a float padding mask marks keys by values below `PADDED_BELOW`; greater
    ones have no effect, because the column step cancels what is added for a key.
    """

    parts = frozenset(
        {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"}
        | {"out_proj", "bias_k", "bias_v"}
    )

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        if module.bias_k is not None or module.add_zero_attn:
            given = "add_zero_attn" if module.bias_k is None else "add_bias_kv"
            return f"{given}=True appends a key that belongs to no token"
        return super().obstacle(module)

    def complete(self) -> None:
        # nn.TransformerEncoderLayer asks for this before it takes a fused path, which would
        # compute softmax attention from the weights and never call `forward`.
        self._qkv_same_embed_dim = False

    @classmethod
    def settle(cls, model: nn.Module) -> None:
        """Let an `nn.TransformerEncoder` make no nested tensors, for the fused path, of padding."""
        for encoder in model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(
                isinstance(layer, cls) for layer in encoder.modules()
            ):
                encoder.use_nested_tensor = False

    @property
    def attention_dropout_rate(self) -> float:
        return self.dropout

    @attention_dropout_rate.setter
    def attention_dropout_rate(self, rate: float) -> None:
        self.dropout = rate

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and, with `need_weights`, the plan: as it is before dropout."""
        if query.is_nested:
            return self.of_nested(query, key, value, need_weights, average_attn_weights)
        if is_causal and attn_mask is None:
            raise UserError("is_causal=True needs attn_mask too, as in torch.nn.MultiheadAttention")
        to_itself = key is query
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t[None] for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self.projected(query, key, value)
        if is_causal and not self.attend.takes_bias:
            self.softmax_options(q, k, None, is_causal=True)  # raises the error for causal masks
        padding, bias = self.masks(key_padding_mask, attn_mask, q.shape[0], to_itself)
        out = self.out_proj(self.attended(q, k, v, key_padding_mask=padding, bias=bias))
        plan = None
        if need_weights:
            more = {} if bias is None else {"bias": bias}
            plan = self.attend.plan(q, k, key_padding_mask=padding, **more)
            plan = plan.mean(dim=1) if average_attn_weights else plan
        if not batched:
            return out[0], None if plan is None else plan[0]
        return out if self.batch_first else out.transpose(0, 1), plan

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return q, k and v `[B, H, tokens, D]` of inputs `[B, tokens, dim]`."""
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        parts = map(F.linear, (query, key, value), weights, biases)
        heads = (self.num_heads, self.head_dim)
        return tuple(t.unflatten(-1, heads).transpose(1, 2) for t in parts)

    def masks(
        self, padding: Tensor | None, mask: Tensor | None, batch: int, to_itself: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the mask of padded tokens, and what is to be added to the logits.

        torch's masks are True, or -inf, where there is no attention.
        """
        bias = None
        if mask is not None:
            mask = mask.unflatten(0, (batch, self.num_heads)) if mask.dim() == 3 else mask
            bias = ~mask if mask.dtype == torch.bool else mask
        if padding is None:
            return None, bias
        if not self.attend.takes_bias and not to_itself:
            raise UserError(
                f"key_padding_mask is not possible with {self.attend.name} attention from one "
                "sequence to another: it marks the same tokens as queries and as keys"
            )
        if padding.dtype != torch.bool and not self.attend.takes_bias:
            return padding < PADDED_BELOW, bias
        if padding.dtype == torch.bool and to_itself:
            return padding, bias
        of_keys = ~padding if padding.dtype == torch.bool else padding
        return None, together(bias, of_keys[:, None, None, :])

    def of_nested(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, average: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within each sequence of a nested tensor."""
        if not (query is key and key is value and self.batch_first):
            raise UserError(
                "a nested tensor is taken for self-attention with batch_first=True alone"
            )
        lengths = torch.tensor([len(x) for x in query.unbind()], device=query.device)
        x = query.to_padded_tensor(0.0)
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        out, plan = self.forward(x, x, x, padding, need_weights, average_attn_weights=average)
        return torch._nested_tensor_from_mask(out, ~padding), plan


def together(bias: Tensor | None, of_keys: Tensor) -> Tensor:
    """Combine two masks on the logits, each additive, or boolean and True for attention."""
    if bias is None:
        return of_keys
    if bias.dtype == of_keys.dtype == torch.bool:
        return bias & of_keys
    additive = [
        torch.zeros_like(t, dtype=torch.float32).masked_fill(~t, float("-inf"))
        if t.dtype == torch.bool
        else t
        for t in (bias, of_keys)
    ]
    return additive[0] + additive[1]
