"""What every attention layer of a frozen teacher receives, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import LayerInputs, record_inputs
from asap_exp.devices import autocast

Forward = Callable[[nn.Module, Any], Tensor]
"""Runs a model on a batch of a loader and returns its predictions."""


def on_inputs(model: nn.Module, batch: tuple[Any, Any]) -> Tensor:
    """On a pair of inputs and labels; the labels are not read."""
    return model(batch[0])


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def layer_inputs(
    model: nn.Module, batches: Iterable[Any], precision: str, forward: Forward = on_inputs
) -> Iterator[dict[str, LayerInputs]]:
    """For each batch, q, k, v and mask of every attention layer by path."""
    for batch in batches:
        with record_inputs(model) as recorded, autocast(precision, device_of(model)):
            forward(model, batch)
        yield recorded
