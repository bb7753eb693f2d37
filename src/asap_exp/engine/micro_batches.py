"""Parts of a batch that pass through the network one after another, so that they fit in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from asap_exp.data.loader import Batch
from asap_exp.data.tokens import TokenBatch


class Part(NamedTuple):
    """Part of a batch, with its `share` of the batch's targets.

    The mean losses of the parts, weighted by their shares, add up to that of the batch.
    """

    inputs: Any
    targets: Tensor
    share: float


@dataclass(frozen=True)
class MicroBatch:
    """Size of the parts: at most `samples`, and of texts at most `tokens` including padding.

    A part has at least one sample.
    """

    samples: int
    tokens: int | None = None

    def split(self, batch: Batch) -> list[Part]:
        """Split a batch into parts of nearly equal size; a part without targets is left out."""
        inputs, targets = batch
        rows, most = len(inputs), self._rows(inputs)
        if rows <= most:
            return [Part(inputs, targets, 1.0)]
        size = -(-rows // -(-rows // most))
        parts = (taken(inputs, targets, at, at + size) for at in range(0, rows, size))
        return [Part(x, y, len(y) / len(targets)) for x, y in parts if len(y)]

    def _rows(self, inputs: Any) -> int:
        if self.tokens is None or not isinstance(inputs, TokenBatch):
            return self.samples
        return max(self.tokens // inputs.ids.shape[1], 1)


def taken(inputs: Any, targets: Tensor, start: int, stop: int) -> Batch:
    """Return the samples from `start` to `stop` with their targets."""
    if not isinstance(inputs, TokenBatch):
        return inputs[start:stop], targets[start:stop]
    mask, positions, length = inputs.key_padding_mask, inputs.positions, inputs.ids.shape[1]
    ids, mask = inputs.ids[start:stop], None if mask is None else mask[start:stop]
    if positions is None:
        return TokenBatch(ids, mask), targets[start:stop]
    inside = (positions >= start * length) & (positions < stop * length)
    return TokenBatch(ids, mask, positions[inside] - start * length), targets[inside]


def split(batch: Batch, size: MicroBatch | None) -> Iterator[Part]:
    """Yield the parts of a batch; without a `size` the batch itself."""
    yield from [Part(*batch, 1.0)] if size is None else size.split(batch)
