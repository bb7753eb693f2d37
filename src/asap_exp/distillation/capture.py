"""What every attention layer of a frozen teacher receives, batch by batch."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from asap_exp.attention import LayerInputs, record_inputs
from asap_exp.data.loader import Batch
from asap_exp.devices import autocast


@torch.no_grad()
def layer_inputs(
    model: nn.Module, batches: Iterable[Batch], precision: str
) -> Iterator[dict[str, LayerInputs]]:
    """For each batch, q, k, v and mask of every attention layer by path; labels are not read."""
    for inputs, _ in batches:
        with record_inputs(model) as recorded, autocast(precision, inputs.device):
            model(inputs)
        yield recorded
