"""Batches of texts of about the same length, so that padding is not what the device works on."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asap_exp.data.loader import Batch, BatchLoader
from asap_exp.data.tokens import NO_TARGET, PAD, Texts, TokenBatch

Transform = Callable[[TokenBatch, Tensor, int], Batch]
EXAMPLE_TOKENS = 64


class Planned(NamedTuple):
    """The texts of a batch, and the length to which they are padded."""

    rows: np.ndarray
    length: int


class TextLoader(BatchLoader):
    """Batches of at most `batch_size` texts and at most `max_tokens` tokens, padding counted.

    Texts are padded to the next multiple of `length_multiple` (at most to `max_length`) and batched
    with others of that length; the few that are left over join the next longer ones. So there are
    as many shapes as lengths, and one, and every text comes once an epoch. `transform` gets each
    batch, its labels, and how many of its tokens are neither padding nor CLS.
    """

    def __init__(
        self,
        texts: Texts,
        batch_size: int,
        *,
        max_length: int,
        length_multiple: int,
        max_tokens: int | None,
        transform: Transform | None = None,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(batch_size, seed, epoch)
        self.texts, self.transform = texts, transform
        self.max_length, self.length_multiple = max_length, length_multiple
        self.max_tokens = max_tokens

    @property
    def rows(self) -> int:
        return self.texts.rows

    def __len__(self) -> int:
        return len(self._planned(np.arange(self.rows)))

    def __iter__(self) -> Iterator[Batch]:
        plan = self._epoch()
        device = self.texts.ids.device
        every = np.concatenate([batch.rows for batch in plan]) if plan else np.zeros(0, np.int64)
        rows = torch.from_numpy(every).to(device)  # once: a copy for each batch would wait for it
        ends = np.cumsum([len(batch.rows) for batch in plan])
        for i in self._numbers():
            yield self._assembled(rows[ends[i] - len(plan[i].rows) : ends[i]], plan[i])

    def first(self, rows: int, batch_size: int | None = None) -> "TextLoader":
        return TextLoader(
            self.texts.take(np.arange(min(rows, self.rows))),
            batch_size or self.batch_size,
            max_length=self.max_length,
            length_multiple=self.length_multiple,
            max_tokens=self.max_tokens if batch_size is None else None,
        )

    def example(self) -> "TextLoader":
        """The first text, cut to a length that can be looked at."""
        length = min(int(self.texts.lengths[0]), EXAMPLE_TOKENS)
        beginning = Texts(
            self.texts.ids[:length],
            torch.tensor([0, length], device=self.texts.offsets.device),
            self.texts.labels[:1],
            self.texts.source,
            None if self.texts.targets is None else self.texts.targets[:length],
        )
        return TextLoader(beginning, 1, max_length=length, length_multiple=1, max_tokens=None)

    def fingerprint(self) -> str:
        return self.texts.fingerprint()

    @cached_property
    def _padded(self) -> np.ndarray:
        """The length to which each text is padded."""
        multiples = -(-self.texts.lengths // self.length_multiple) * self.length_multiple
        return np.minimum(multiples, self.max_length)

    def _epoch(self) -> list[Planned]:
        """The batches in the order in which they come."""
        if not self.shuffled:
            return self._planned(np.arange(self.rows))
        generator = self.generator()
        plan = self._planned(torch.randperm(self.rows, generator=generator).numpy())
        return [plan[i] for i in torch.randperm(len(plan), generator=generator).tolist()]

    def _planned(self, order: np.ndarray) -> list[Planned]:
        """The batches of an epoch, from short to long; `order` says which text comes first."""
        padded = self._padded[order]
        plan: list[Planned] = []
        waiting = np.zeros(0, dtype=np.int64)
        for length in np.unique(padded).tolist():
            mine = np.concatenate([waiting, order[padded == length]])
            size = self._batch_size(length)
            full = len(mine) // size * size
            plan += [Planned(mine[i : i + size], length) for i in range(0, full, size)]
            waiting = mine[full:]
        return [*plan, Planned(waiting, length)] if len(waiting) else plan

    def _batch_size(self, length: int) -> int:
        if self.max_tokens is None:
            return self.batch_size
        return max(min(self.batch_size, self.max_tokens // length), 1)

    def _assembled(self, rows: Tensor, batch: Planned) -> Batch:
        texts, lengths = self.texts, self.texts.lengths[batch.rows]
        starts, ends = texts.offsets[rows, None], texts.offsets[rows + 1, None]
        places = starts + torch.arange(batch.length, device=rows.device)
        padding = places >= ends
        places = places.clamp(max=len(texts.ids) - 1)
        tokens = TokenBatch(
            texts.ids[places].long().masked_fill(padding, PAD),
            None if (lengths == batch.length).all() else padding,
        )
        labels = texts.labels[rows]
        if self.transform is not None:
            return self.transform(tokens, labels, int(lengths.sum()) - len(lengths))
        if texts.targets is None:
            return tokens, labels
        targets = texts.targets[places].long().masked_fill(padding, NO_TARGET).flatten()
        positions = (targets != NO_TARGET).nonzero()[:, 0]
        return TokenBatch(tokens.ids, tokens.key_padding_mask, positions), targets[positions]
