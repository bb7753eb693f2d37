"""Batches of masked tokens, filled up so that few of them differ in shape."""

import torch.nn.functional as F

from asap_exp.data.loader import Batch
from asap_exp.data.tokens import TokenBatch

IGNORED = -100
"""Target that PyTorch's cross entropy leaves out."""

PORTIONS = 64
"""Most numbers of predicted tokens that batches of one size can differ in."""


def rounded_up(batch: Batch) -> Batch:
    """Return the batch with ignored targets added up to a whole portion of its tokens.

    The number of predicted tokens follows from the lengths of the texts. Other batches stay as
    they are.
    """
    inputs, targets = batch
    if not isinstance(inputs, TokenBatch) or inputs.positions is None:
        return batch
    missing = -len(targets) % max(inputs.ids.numel() // PORTIONS, 1)
    positions = F.pad(inputs.positions, (0, missing))
    return (
        TokenBatch(inputs.ids, inputs.key_padding_mask, positions),
        F.pad(targets, (0, missing), value=IGNORED),
    )
