"""Attention layer of a Transformer block: projections, norms on q and k, output."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention.base import Attention, as_tensor, attention_config, config_in
from asap_exp.attention.softmax import SoftmaxAttention
from asap_exp.core.errors import UserError
from asap_exp.ops.backend import chosen

CAUSAL = "with a causal mask the identity is the only doubly-stochastic plan"
ADDITIVE = (
    "a doubly-stochastic plan follows from its marginals and the logits of q and k alone: the "
    "column step cancels a finite mask, and -inf leaves tokens without their share"
)
DROPOUT = "dropping attention weights breaks the uniform marginals of the plan"
OF_HEADS = ("num_heads", "head_dim")
STATED = "_attention"
"""Key, in the state_dict of a layer of a compiled model, of its attention and the options."""


class AttentionLayer(nn.Module):
    """Layer that makes q, k and v of its input and hands them to `attend`.

    Assign another attention to `attend` to swap it; every other weight stays. UserError if the
    layer adds something to the logits, or drops attention weights, which only softmax attention
    allows. A subclass sets `num_heads` and `head_dim` and calls `attended` in its `forward`.
    """

    num_heads: int
    head_dim: int
    attend: Attention
    stated: bool = False
    """True in a compiled model: a state_dict then says which attention this layer has."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "attend":
            check_attend(self, value)
            value.attach(self)
        super().__setattr__(name, value)

    # With get_extra_state, the weights of every training would have the key, and need it.
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.stated and not self.attend.needs_calibration:  # a map is known by its tensors
            destination[f"{prefix}{STATED}"] = as_tensor(attention_config(self.attend))

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = f"{prefix}{STATED}"
        if not self.stated or key not in state_dict:  # older versions say nothing
            return
        unexpected_keys[:] = [name for name in unexpected_keys if name != key]
        try:
            told, own = config_in(state_dict[key], key), attention_config(self.attend)
            if told != own:
                error_msgs.append(f"{key} is of {told}, and this attention is {own}")
        except UserError as error:
            error_msgs.append(str(error))

    @property
    def logit_bias(self) -> str | None:
        """What this layer always adds to the logits, in words."""
        return None

    @property
    def attention_dropout_rate(self) -> float:
        """Share of the attention weights that is dropped in training mode."""
        drop = getattr(self, "attn_drop", None)
        return drop.p if isinstance(drop, nn.Dropout) else 0.0

    @attention_dropout_rate.setter
    def attention_dropout_rate(self, rate: float) -> None:
        self.attn_drop = nn.Dropout(rate)

    def backend_on(self, device: torch.device) -> str:
        """Name the implementation that operators choose for this layer's heads on a device."""
        return chosen("auto", torch.empty(1, 1, 1, self.head_dim, device=device))

    def refusal(self, kind: type[Attention]) -> str | None:
        """Return why this layer cannot have an attention of this kind, or None if it can."""
        if kind.takes_bias:
            return None
        if self.logit_bias:
            return f"it adds {self.logit_bias} to the logits, and {ADDITIVE}"
        if self.attention_dropout_rate:
            return (
                f"it has attention dropout of {self.attention_dropout_rate}, and {DROPOUT}; set "
                "layer.attention_dropout_rate = 0, or convert with attention_dropout=0"
            )
        return None

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        bias: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Run `attend` on q `[B, H, N, D]` and k, v `[B, H, M, D]`; return `[B, N, H * D]`.

        `bias` is added to the logits, or is boolean and True where a query attends to a key; it
        broadcasts to `[B, H, N, M]`. Raises UserError if it, or `is_causal`, is given to another
        attention than softmax.
        """
        more = self.softmax_options(q, k, bias, is_causal)
        out = self.attend(q, k, v, key_padding_mask=key_padding_mask, **more)
        return out.transpose(1, 2).flatten(2)

    def softmax_options(
        self, q: Tensor, k: Tensor, bias: Tensor | None, is_causal: bool
    ) -> dict[str, Any]:
        """Return the keywords of `attend` that softmax attention alone takes."""
        dropout = self.attention_dropout_rate if self.training else 0.0
        if not (is_causal or bias is not None or dropout):
            return {}
        if not self.attend.takes_bias:
            what, reason = "a mask or bias on the logits", ADDITIVE
            if is_causal:
                what, reason = "causal attention", CAUSAL
            elif bias is None:
                what, reason = f"attention dropout of {dropout}", DROPOUT
            raise UserError(
                f"{what} is not possible with {self.attend.name} attention: {reason}. Padded "
                "tokens are masked with key_padding_mask; all else is for softmax attention alone"
            )
        if is_causal:
            bias = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        return {"bias": bias, "dropout": dropout}


class MultiHeadAttention(AttentionLayer):
    """Multi-head attention from `[B, N, dim]` to `[B, N, dim_out or dim]`, with `attend` inside.

    The keywords are those of timm's own attention, whose blocks call it (`attn_layer`, which must
    be a class), with the same meaning: `qk_norm` puts a norm over the head dimension on q and on k,
    `scale_norm` one on the output of `attend`; `norm_layer` makes them, by default an RMS norm.
    Dropout of attention weights (`attn_drop`), `attn_mask` and `is_causal` are for softmax alone.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attend: Attention | None = None,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Callable[..., nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_keywords(unknown)
        if num_heads < 1 or (attn_head_dim is None and dim % num_heads):
            raise UserError(
                f"num_heads={num_heads} must be at least 1, and dim={dim} a multiple of it"
            )
        self.num_heads = num_heads
        self.head_dim = dim // num_heads if attn_head_dim is None else attn_head_dim
        width = self.num_heads * self.head_dim
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        make_norm: Callable[..., nn.Module] = norm_layer or nn.RMSNorm
        norm = partial(make_norm, **place)
        self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias, **place)
        self.q_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.attend = attend or SoftmaxAttention()
        self.norm = norm(width) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, width, bias=qkv_bias, **place) if gated else None
        self.proj = nn.Linear(width, dim_out or dim, bias=proj_bias, **place)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        q, k = normalised(self.q_norm, q), normalised(self.k_norm, k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = self.attended(
            q, k, v, key_padding_mask=key_padding_mask, bias=attn_mask, is_causal=is_causal
        )
        return output(self, x, out)


def check_attend(layer: AttentionLayer, attend: Any) -> None:
    """Raise UserError unless `layer` can have this attention."""
    if not isinstance(attend, Attention):
        raise UserError(
            f"attend must be an attention, such as asap_exp.attention.SinkhornAttention(); "
            f"got {type(attend).__name__}"
        )
    if reason := layer.refusal(type(attend)):
        raise UserError(f"{attend.name} attention is not possible in this layer: {reason}")


def check_complete(layer: AttentionLayer, path: str) -> None:
    """Raise UserError unless the layer at `path` has all that a subclass sets."""
    what = f"the layer at {path} ({type(layer).__name__})" if path else f"{type(layer).__name__}"
    if missing := [name for name in (*OF_HEADS, "attend") if not hasattr(layer, name)]:
        raise UserError(
            f"{what} has no {', '.join(missing)}; a subclass of AttentionLayer sets num_heads, "
            "head_dim and attend in its __init__"
        )
    for name in OF_HEADS:
        value = getattr(layer, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{what} has {name}={value!r}; it must be a whole number, at least 1")


def output(layer: Any, x: Tensor, out: Tensor) -> Tensor:
    """Norm, gate and project what `attend` returned, in a layer that has timm's names for them."""
    out = normalised(layer.norm, out)
    gate = getattr(layer, "gate", None)  # older versions of timm have none
    if gate is not None:
        out = out * gate(x).sigmoid()
    return layer.proj_drop(layer.proj(out))


def check_keywords(unknown: Mapping[str, Any]) -> None:
    """Raise UserError for arguments that `MultiHeadAttention` does not know."""
    if unknown:
        given = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        known = inspect.signature(MultiHeadAttention).parameters.values()
        raise UserError(
            f"MultiHeadAttention does not know {given}; leave it out, or use your own attention "
            "in the model's blocks. It accepts "
            f"{', '.join(p.name for p in known if p.kind is not p.VAR_KEYWORD)}"
        )


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply the norm in the dtype of its weight (float32 under autocast); return the dtype of x."""
    weight = getattr(norm, "weight", None)
    return norm(x if weight is None else x.to(weight.dtype)).to(x.dtype)
