"""The attention layer of a Transformer block: projections, norms on q and k, output."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asap_exp.attention.base import Attention
from asap_exp.attention.softmax import SoftmaxAttention
from asap_exp.errors import UserError


class MultiHeadAttention(nn.Module):
    """`[B, N, dim]` to `[B, N, dim]`, with `attend` between the projections.

    `qk_norm` puts an RMS norm over the head dimension on q and on k. The signature is the one that
    timm's blocks call (`attn_layer`, which must be a class). Assign another attention to `attend`
    to swap it: every other weight stays.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attend: Attention | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        **unused: Any,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"model.dim={dim} must be a multiple of model.heads={num_heads}")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.attend = attend or SoftmaxAttention()
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError(
                "doubly-stochastic attention takes a key_padding_mask only: a causal or arbitrary "
                "mask has no plan with uniform marginals"
            )
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        q, k = self._normalised(self.q_norm, q), self._normalised(self.k_norm, k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = self.attend(q, k, v, key_padding_mask=key_padding_mask)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    @staticmethod
    def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
        """The norm in the dtype of its weight (float32 under autocast), the result in x's."""
        if not isinstance(norm, nn.RMSNorm):
            return x
        return norm(x.to(norm.weight.dtype)).to(x.dtype)


class LayerInputs(NamedTuple):
    """What one attention layer received: q, k, v `[B, H, N, D]` and the mask `[B, N]` or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_padding_mask: Tensor | None

    def of_samples(self, part: slice) -> "LayerInputs":
        """Those of some samples of the batch."""
        q, k, v, mask = self
        return LayerInputs(q[part], k[part], v[part], None if mask is None else mask[part])


def attention_layers(model: nn.Module) -> dict[str, MultiHeadAttention]:
    """Every attention layer of `model` by its module path, in the order of the blocks."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, MultiHeadAttention)
    }


@contextmanager
def record_inputs(model: nn.Module) -> Iterator[dict[str, LayerInputs]]:
    """While open, each forward pass of `model` leaves every layer's q, k, v, mask in the dict.

    Compiled modules run eagerly meanwhile: a hook is no part of a graph compiled without it.
    """
    recorded: dict[str, LayerInputs] = {}

    def recorder(path: str) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            q, k, v = (t.detach() for t in args)
            recorded[path] = LayerInputs(q, k, v, kwargs.get("key_padding_mask"))

        return hook

    handles = [
        layer.attend.register_forward_pre_hook(recorder(path), with_kwargs=True)
        for path, layer in attention_layers(model).items()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def swapped(model: nn.Module, replacements: Mapping[str, Attention]) -> Iterator[nn.Module]:
    """`model` with other attentions in the layers at the given paths, for as long as it is open."""
    layers = layers_at(model, replacements)
    originals = {path: layer.attend for path, layer in layers.items()}
    swap_attention(model, replacements)
    try:
        yield model
    finally:
        swap_attention(model, originals)


def swap_attention(model: nn.Module, replacements: Mapping[str, Attention]) -> None:
    """Puts another attention into each layer at the given paths; every other weight stays."""
    for path, layer in layers_at(model, replacements).items():
        layer.attend = replacements[path]


def layers_at(model: nn.Module, paths: Iterable[str]) -> dict[str, MultiHeadAttention]:
    """The attention layers at `paths`; UserError where there is none."""
    layers = attention_layers(model)
    wanted = list(paths)
    unknown = sorted(set(wanted) - layers.keys())
    if unknown:
        raise UserError(
            f"no attention layer at {', '.join(unknown)}; the model has {', '.join(layers)}"
        )
    return {path: layers[path] for path in wanted}
