"""Convert a model: this project's attention layers in the place of the usual ones."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import nn

from asap_exp.attention.base import (
    ATTENTIONS,
    Attention,
    attention_options,
    build_attention,
)
from asap_exp.attention.conversion.adopted import Adopted, with_state_of
from asap_exp.attention.conversion.families import (
    WRITTEN_OUT,
    adopter,
    looks_like_attention,
    obstacle,
)
from asap_exp.attention.layer import AttentionLayer, check_complete
from asap_exp.attention.softmax import SoftmaxAttention
from asap_exp.core.devices import device_of
from asap_exp.core.errors import UserError, check_choice, check_range

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Found:
    """Attention in a model: where it is, and what takes its place or why nothing does."""

    path: str
    module: nn.Module
    kind: type[Adopted] | None = None
    obstacle: str | None = None

    def layer(self, attention: Attention | None, dropout: float | None) -> AttentionLayer:
        """Return the layer to put there; one that is this project's already is changed itself."""
        if self.kind is None:
            assert isinstance(self.module, AttentionLayer)
            layer = self.module
        else:
            layer = self.kind.of(self.module)
            attention = attention or SoftmaxAttention()
        if dropout is not None:
            layer.attention_dropout_rate = dropout
        if attention is not None:
            layer.attend = attention.to(device_of(layer)).train(layer.training)
        return layer

    def refusal(self, attention: Attention | None, dropout: float | None) -> str | None:
        """Return why there cannot be a layer with this attention, or None if there can."""
        if self.obstacle:
            return self.obstacle
        layer: AttentionLayer
        if self.kind is not None:
            layer = with_state_of(self.module, self.kind)
            attention = attention or SoftmaxAttention()
        else:
            assert isinstance(self.module, AttentionLayer)
            layer = with_state_of(self.module, type(self.module))
            attention = attention or layer.attend
        if dropout is not None:
            layer.attention_dropout_rate = dropout
        reason = layer.refusal(type(attention))
        return reason and f"{attention.name} attention is not possible: {reason}"


def convert(
    model: Model,
    *,
    attention: str | None = None,
    attention_dropout: float | None = None,
    skip: Sequence[str] = (),
    inplace: bool = False,
    **options: Any,
) -> Model:
    """Return a copy of `model` with this project's attention layers in the place of the usual ones.

    Known are timm's `Attention`, `AttentionRope`, `EvaAttention`, BEiT's and Swin's;
    `torch.nn.MultiheadAttention`, also in `nn.TransformerEncoder`; transformers' BERT and ViT. The
    layers have softmax attention, and the outputs of the model stay up to rounding, until
    `attention` names another, such as "sinkhorn", with its `options` (`num_iters=20`), or
    `layer.attend` is set. Layers of this project that are there already get `attention` too.

    `attention_dropout` replaces the rate at which attention weights are dropped in training; only
    softmax allows another than 0. `skip` lists paths to leave as they are, with all below them.
    Weights keep their names, and tied modules stay tied. With `inplace` the model itself is
    changed, and keeps its parameters, and so what an optimiser holds of them.

    Raises UserError that names every attention (path, class, reason) that cannot be converted, or
    cannot be this attention; or says that there is none.
    """
    check_arguments(model, attention_dropout, skip, inplace)
    made = maker(attention, options)
    found = without(list(search(model)), skip)
    for each in found:
        if isinstance(each.module, AttentionLayer):
            check_complete(each.module, each.path)
    check_found(model, found, attention, inplace)
    reasons = [(each, each.refusal(made(), attention_dropout)) for each in found]
    if refused := [(each, reason) for each, reason in reasons if reason]:
        raise UserError(
            f"this {type(model).__name__} cannot be converted:\n  "
            + "\n  ".join(grouped(refused))
            + f"\nskip={[each.path for each, _ in refused]} leaves them as they are"
        )
    if not inplace:
        model = copy.deepcopy(model)
    layers: dict[nn.Module, AttentionLayer] = {}
    for each in found:
        old = model.get_submodule(each.path)  # of the copy
        if old not in layers:
            now = Found(each.path, old, each.kind)
            attend = made()
            if attend is not None:
                attend.depth = len(layers)
            layers[old] = now.layer(attend, attention_dropout)
        model = put(model, each.path, layers[old])
    for kind in {each.kind for each in found if each.kind is not None}:
        kind.settle(model)
    return model


def search(module: nn.Module, path: str = "") -> Iterator[Found]:
    """Yield every attention in `module`: what can be converted, or why it cannot."""
    if isinstance(module, AttentionLayer):
        yield Found(path, module)
    elif kind := adopter(module):
        yield Found(path, module, kind, kind.obstacle(module))
    else:
        inner = [
            each
            for name, child in module._modules.items()
            if child is not None
            for each in search(child, f"{path}.{name}" if path else name)
        ]
        if not inner and looks_like_attention(module):
            yield Found(path, module, None, obstacle(module))
        yield from inner


def maker(attention: str | None, options: Mapping[str, Any]) -> Any:
    """Return a function that makes the wanted attention, or None where the usual one stays."""
    if attention is None:
        if options:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise UserError(
                f"{given}: options need attention=NAME before them, for example "
                'attention="sinkhorn", num_iters=20'
            )
        return lambda: None
    fixed = tuple(name for name, kind in ATTENTIONS.items() if not kind.needs_calibration)
    if attention not in fixed and attention in ATTENTIONS:
        raise UserError(
            f'attention={attention!r} is made by asap_exp.compile: convert with "sinkhorn", train '
            "on, then compile"
        )
    check_choice("attention", attention, fixed)
    allowed = attention_options(attention)
    for name, value in options.items():
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise UserError(
                f"{name}={value!r} is not an option of {attention} attention; its options: {known}"
            )
    config = {"name": attention, **options}
    build_attention(config)
    return lambda: build_attention(config)


def grouped(refused: Iterable[tuple[Found, str]]) -> list[str]:
    """Return a line "paths (class): reason" for each class and reason."""
    lines: dict[tuple[str, str], list[str]] = {}
    for each, reason in refused:
        place = each.path or "the model itself"
        lines.setdefault((type(each.module).__name__, reason), []).append(place)
    return [f"{', '.join(paths)} ({name}): {why}" for (name, why), paths in lines.items()]


def put(model: Any, path: str, layer: AttentionLayer) -> Any:
    """Set the submodule at `path`; return the model, which is `layer` if the path is empty."""
    if not path:
        return layer
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
    return model


def without(found: Sequence[Found], skip: Sequence[str]) -> list[Found]:
    """Leave out what is at or below the paths in `skip`; UserError if one of them has nothing."""
    kept = list(found)
    for path in skip:
        below = [f for f in found if f.path == path or f.path.startswith(f"{path}.")]
        if not below:
            raise UserError(
                f"skip={list(skip)}: there is no attention at {path!r}; the model has it at "
                f"{', '.join(f.path for f in found) or 'no path'}"
            )
        kept = [each for each in kept if each not in below]
    return kept


def check_found(
    model: nn.Module, found: Sequence[Found], attention: str | None, inplace: bool
) -> None:
    """Raise UserError if there is nothing to convert, or not in this way."""
    name = type(model).__name__
    if not found:
        raise UserError(
            f"this {name} has nothing to convert: no module in it, but those in skip, is attention "
            f"of timm, torch or transformers that is known here or looks like it. {WRITTEN_OUT}"
        )
    layers = [each.module for each in found if isinstance(each.module, AttentionLayer)]
    if any(layer.attend.needs_calibration for layer in layers):
        raise UserError(f"this {name} is compiled; convert the model that it was made of")
    if attention is None and len(layers) == len(found):
        raise UserError(
            f"this {name} has nothing to convert: its attention layers are this project's already. "
            'attention="sinkhorn" changes the attention in them'
        )
    if inplace and not found[0].path:
        raise UserError(
            f"this {name} is itself the attention, which inplace=True cannot replace; take what "
            "convert returns"
        )


def check_arguments(model: object, dropout: object, skip: object, inplace: object) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            "a TorchScript module cannot be converted; convert the module it is made of"
        )
    if hasattr(model, "_orig_mod"):
        raise UserError("convert before torch.compile: convert(model._orig_mod)")
    if dropout is not None:
        if isinstance(dropout, bool) or not isinstance(dropout, Real):
            raise UserError(
                f"attention_dropout={dropout!r} has the wrong type; it must be a number"
            )
        check_range("attention_dropout", float(dropout), minimum=0, below=1)
    names = not isinstance(skip, str) and isinstance(skip, Iterable)
    if not names or not all(isinstance(path, str) for path in skip):  # type: ignore[attr-defined]
        raise UserError(f'skip={skip!r} must be a list of paths, for example ["attn_pool"]')
    if not isinstance(inplace, bool):
        raise UserError(f"inplace={inplace!r} has the wrong type; it must be True or False")
