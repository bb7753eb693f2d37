"""The attention layers of a model by path, and swapping of the attention in them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from asap_exp.attention.base import Attention, build_attention
from asap_exp.attention.layer import AttentionLayer
from asap_exp.core.errors import UserError


def attention_layers(model: nn.Module) -> dict[str, AttentionLayer]:
    """Return every attention layer of `model` by module path, in the order of the blocks."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, AttentionLayer)
    }


def named(*paths: str) -> str:
    """Return paths of layers for a message; an empty one is that of a model that is a layer."""
    return ", ".join(path or "the model itself" for path in paths)


def fill_attention(model: nn.Module, attention: Mapping[str, Any], *, tokens: int | None) -> None:
    """Give every attention layer an attention of its own, built from `{name, **options}`.

    `tokens` is the number in every input, None where it differs. UserError if the attention cannot
    have so many.
    """
    for depth, layer in enumerate(attention_layers(model).values()):
        attend = build_attention(attention)
        attend.check_tokens(tokens)
        attend.depth = depth
        layer.attend = attend


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


def layers_at(model: nn.Module, paths: Iterable[str]) -> dict[str, AttentionLayer]:
    """Return the attention layers at `paths`; raise UserError if one is missing."""
    layers = attention_layers(model)
    wanted = list(paths)
    unknown = sorted(set(wanted) - layers.keys())
    if unknown:
        raise UserError(f"no attention layer at {named(*unknown)}; the model has {named(*layers)}")
    return {path: layers[path] for path in wanted}
