"""Inputs of every attention layer of a frozen teacher, batch by batch."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import (
    AttentionLayer,
    LayerInputs,
    SinkhornAttention,
    attention_layers,
    record_inputs,
)
from asap_exp.attention.swapping import named
from asap_exp.core.agreement import alone
from asap_exp.core.devices import AUTOCAST_DTYPES, autocast, device_of
from asap_exp.core.errors import UserError
from asap_exp.core.nan_check import first_non_finite
from asap_exp.core.nested import tensors_in
from asap_exp.ops.masking import blank

Forward = Callable[[nn.Module, Any], Tensor]
"""Runs a model on a batch of a loader and returns its predictions."""


def on_inputs(model: nn.Module, batch: tuple[Any, Any]) -> Tensor:
    """Run the model on a pair of inputs and labels, ignoring the labels."""
    return model(batch[0])


def sinkhorn(layer: AttentionLayer) -> SinkhornAttention:
    """Return the teacher's attention in `layer`."""
    assert isinstance(layer.attend, SinkhornAttention), "only Sinkhorn layers are calibrated"
    return layer.attend


IN_FULL = "train with trainer.precision=32-true"
"""Advice, in a stage's words."""

Recorded = Mapping[str, Sequence[LayerInputs]]
"""Inputs of each call on one batch, by layer path."""


@torch.no_grad()
def layer_inputs(model: nn.Module, batches: Iterable[Any], precision: str) -> Iterator[Recorded]:
    """Yield, for each batch, q, k, v and mask of every call of every attention layer by path."""
    for batch in batches:
        yield recorded_pass(model, batch, precision, on_inputs)[0]


def sample_bytes(model: nn.Module, batch_of_one: Any, precision: str) -> int:
    """Return the bytes of what all attention layers receive of one sample."""
    recorded = next(layer_inputs(model, [batch_of_one], precision))
    calls = (call for calls in recorded.values() for call in calls)
    return sum(tensor.nbytes for call in calls for tensor in call if tensor is not None)


@torch.no_grad()
def recorded_pass(
    model: nn.Module, batch: Any, precision: str, forward: Forward
) -> tuple[Recorded, Any]:
    """Record what every attention layer receives on `batch`, and what the model predicts."""
    with record_inputs(model) as recorded, autocast(precision, device_of(model)):
        predictions = forward(model, batch)
    return recorded, predictions


def batch_name(index: int) -> str:
    return f"batch {index + 1}"


def checked_inputs(
    model: nn.Module,
    batches: Iterable[Any],
    paths: Collection[str],
    precision: str,
    forward: Forward = on_inputs,
    name: Callable[[int], str] = batch_name,
) -> Iterator[Recorded]:
    """Yield as `layer_inputs` does; UserError if a layer did not run or got non-finite inputs.

    Raise it too if a batch is all padding, and if predictions on a finite batch are not finite:
    then a later layer is at fault. `name(index)` names a batch in messages.
    """
    layers = attention_layers(model)
    for index, batch in enumerate(batches):
        recorded, predictions = recorded_pass(model, batch, precision, forward)
        missed = [path for path in paths if path not in recorded]
        if missed:
            raise UserError(
                f"forward did not run the attention layer at {named(*missed)} on {name(index)}; "
                "leave it out with layers=[...], or call the model so that it does"
            )
        for path in paths:
            check_heads(layers[path], path, recorded[path])
        if not all(is_finite(call) for path in paths for call in recorded[path]):
            raise UserError(not_finite(recorded, batch, name(index), precision))
        if alone() and all(is_padding(call) for path in paths for call in recorded[path]):
            raise UserError(
                f"on {name(index)} every token is masked as padding; in a key_padding_mask, True "
                "is a padded token"
            )
        # What a batch has in padded places may come out there again.
        if spoilt(predictions) and all(tensor.isfinite().all() for tensor in tensors_in(batch)):
            with autocast(precision, device_of(model)):
                where = first_non_finite(model, batch, forward)
            raise UserError(
                f"the model's predictions on {name(index)}, which is finite itself, hold NaN or "
                f"infinity: {where}. Mend the weights up to there{unless_half(precision)}"
            )
        yield recorded


def check_heads(layer: AttentionLayer, path: str, calls: Sequence[LayerInputs]) -> None:
    """Raise UserError unless queries have the heads that their layer says it has."""
    said = (layer.num_heads, layer.head_dim)
    for call in calls:
        found = (call.q.shape[1], call.q.shape[3])
        if found != said:
            raise UserError(
                f"the layer at {path} ({type(layer).__name__}) gives attended() queries of "
                f"{found[0]} heads of {found[1]} channels, and has num_heads={said[0]}, "
                f"head_dim={said[1]}; set these to what they are"
            )


def not_finite(recorded: Recorded, batch: Any, name: str, precision: str) -> str:
    """Say where the first NaN or infinity is: in the batch, or else in which layer."""
    by_call = itertools.zip_longest(*([(p, c) for c in calls] for p, calls in recorded.items()))
    in_order = (each for calls in by_call for each in calls if each is not None)
    path = next(path for path, call in in_order if not is_finite(call))
    if all(tensor.isfinite().all() for tensor in tensors_in(batch)):
        return (
            f"on {name}, which is finite itself, the queries or keys of the layer at "
            f"{named(path)} are not (NaN or infinity), and those of no layer before it: look at "
            f"the weights up to there{unless_half(precision)}"
        )
    return (
        f"{name} is not finite: it holds NaN or infinity, and so do the queries or keys of the "
        f"layer at {named(path)}; mend or leave out its samples, or mask them as padding"
    )


def spoilt(predictions: Any) -> bool:
    """Return True if there is NaN or infinity; -infinity marks a class that is left out."""
    return any(
        bool((tensor.isnan() | tensor.isposinf()).any())
        for tensor in tensors_in(predictions)
        if tensor.is_floating_point()
    )


def is_finite(inputs: LayerInputs) -> bool:
    """Return True if queries and keys are finite, except at padded places."""
    mask = inputs.key_padding_mask
    return all(bool(blank(x, mask, 2).isfinite().all()) for x in (inputs.q, inputs.k))


def is_padding(inputs: LayerInputs) -> bool:
    """Return True if every token of every sample is padded."""
    return inputs.key_padding_mask is not None and bool(inputs.key_padding_mask.all())


def unless_half(precision: str) -> str:
    """Return the other remedy for what is not finite, in half precision; nothing in 32-true."""
    if precision not in AUTOCAST_DTYPES:
        return ""
    return f"; or, if {precision} overflows, {IN_FULL}"
