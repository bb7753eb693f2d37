"""Attention layer of a Transformer block: projections, norms on q and k, output."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asap_exp.attention.base import Attention
from asap_exp.attention.softmax import SoftmaxAttention
from asap_exp.core.errors import UserError


class MultiHeadAttention(nn.Module):
    """Multi-head attention from `[B, N, dim]` to `[B, N, dim_out or dim]`, with `attend` inside.

    The keywords are those of timm's own attention, whose blocks call it (`attn_layer`, which must
    be a class), with the same meaning: `qk_norm` puts a norm over the head dimension on q and on k,
    `scale_norm` one on the output of `attend`; `norm_layer` makes them, by default an RMS norm.
    Dropout of attention weights is refused, because it would break the marginals of the plan.
    Assign another attention to `attend` to swap it; every other weight stays.
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
        check_keywords(unknown, attn_drop)
        if attn_head_dim is None and dim % num_heads:
            raise UserError(f"model.dim={dim} must be a multiple of model.heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads if attn_head_dim is None else attn_head_dim
        width = self.num_heads * self.head_dim
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        make_norm: Callable[..., nn.Module] = norm_layer or nn.RMSNorm
        norm = partial(make_norm, **place)
        self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias, **place)
        self.q_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim) if qk_norm else nn.Identity()
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
        if attn_mask is not None or is_causal:
            raise ValueError(
                "doubly-stochastic attention accepts only a key_padding_mask: a causal or "
                "arbitrary mask has no plan with uniform marginals"
            )
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        q, k = normalised(self.q_norm, q), normalised(self.k_norm, k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = self.attend(q, k, v, key_padding_mask=key_padding_mask).transpose(1, 2).flatten(2)
        out = normalised(self.norm, out)
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


def check_keywords(unknown: Mapping[str, Any], attn_drop: float) -> None:
    """Raise UserError for arguments that `MultiHeadAttention` cannot honour."""
    if unknown:
        given = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        known = inspect.signature(MultiHeadAttention).parameters.values()
        raise UserError(
            f"MultiHeadAttention does not know {given}; leave it out, or use your own attention "
            "in the model's blocks. It accepts "
            f"{', '.join(p.name for p in known if p.kind is not p.VAR_KEYWORD)}"
        )
    if attn_drop:
        raise UserError(
            f"attn_drop={attn_drop} is not allowed: dropping attention weights breaks the uniform "
            "marginals of the plan. Set it to 0 (in a timm model: attn_drop_rate=0); proj_drop "
            "(proj_drop_rate) drops outputs instead"
        )


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply the norm in the dtype of its weight (float32 under autocast); return the dtype of x."""
    weight = getattr(norm, "weight", None)
    return norm(x if weight is None else x.to(weight.dtype)).to(x.dtype)


class LayerInputs(NamedTuple):
    """Inputs of one attention layer: q, k, v `[B, H, N, D]` and the mask `[B, N]` or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_padding_mask: Tensor | None

    def of_samples(self, part: slice) -> "LayerInputs":
        """Return the inputs of a slice of the batch."""
        q, k, v, mask = self
        return LayerInputs(q[part], k[part], v[part], None if mask is None else mask[part])


def attention_layers(model: nn.Module) -> dict[str, MultiHeadAttention]:
    """Return every attention layer of `model` by module path, in the order of the blocks."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, MultiHeadAttention)
    }


@contextmanager
def record_inputs(model: nn.Module) -> Iterator[dict[str, list[LayerInputs]]]:
    """Record q, k, v and the mask of every layer call, in a list per layer path.

    A layer that runs several times, in one or more forward passes, has as many entries. Compiled
    modules run eagerly meanwhile, because graphs compiled without the hook would skip it.
    """
    recorded: dict[str, list[LayerInputs]] = {}
    layers = attention_layers(model)
    running = ""

    def entering(path: str) -> Callable:
        def hook(*_: Any) -> None:
            nonlocal running
            running = path

        return hook

    def recorder(paths: list[str]) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            path = running if running in paths else paths[0]
            q, k, v = (t.detach() for t in args)
            mask = kwargs.get("key_padding_mask")
            recorded.setdefault(path, []).append(LayerInputs(q, k, v, mask))

        return hook

    sharing: dict[Attention, list[str]] = {}  # several layers may share one attention
    for path, layer in layers.items():
        sharing.setdefault(layer.attend, []).append(path)
    handles = [layer.register_forward_pre_hook(entering(path)) for path, layer in layers.items()]
    handles += [
        attend.register_forward_pre_hook(recorder(paths), with_kwargs=True)
        for attend, paths in sharing.items()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def swapped(model: nn.Module, replacements: Mapping[str, Attention]) -> Iterator[nn.Module]:
    """Swap the attention of the layers at the given paths while the context is open."""
    layers = layers_at(model, replacements)
    originals = {path: layer.attend for path, layer in layers.items()}
    swap_attention(model, replacements)
    try:
        yield model
    finally:
        swap_attention(model, originals)


def swap_attention(model: nn.Module, replacements: Mapping[str, Attention]) -> None:
    """Replace the attention of each layer at the given paths; every other weight stays."""
    for path, layer in layers_at(model, replacements).items():
        layer.attend = replacements[path]


def layers_at(model: nn.Module, paths: Iterable[str]) -> dict[str, MultiHeadAttention]:
    """Return the attention layers at `paths`; raise UserError if one is missing."""
    layers = attention_layers(model)
    wanted = list(paths)
    unknown = sorted(set(wanted) - layers.keys())
    if unknown:
        raise UserError(
            f"no attention layer at {', '.join(unknown)}; the model has {', '.join(layers)}"
        )
    return {path: layers[path] for path in wanted}
