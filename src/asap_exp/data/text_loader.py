"""Batches of texts of similar length, so that little of the device's work goes into padding."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asap_exp.core.ranks import ALONE, Ranks
from asap_exp.data.loader import Batch, BatchLoader
from asap_exp.data.masking import DynamicMasking
from asap_exp.data.tokens import NO_TARGET, PAD, Texts, TokenBatch

Transform = Callable[[TokenBatch, Tensor, int], Batch]
EXAMPLE_TOKENS = 64
"""Tokens of the example text, few enough to plot."""


class Planned(NamedTuple):
    """Rows of a batch of texts, and the length to which they are padded."""

    rows: np.ndarray
    length: int


class TextLoader(BatchLoader):
    """Batches of at most `batch_size` texts and at most `max_tokens` tokens, including padding.

    Texts are padded to the next multiple of `length_multiple` (at most `max_length`) and batched
    with texts of the same padded length; the few left over join the next longer group. So there is
    at most one batch shape more than there are lengths, and every text comes once per epoch.
    `transform` receives each batch, its labels and its number of tokens without padding and CLS.
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
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(batch_size, seed, epoch, ranks)
        self.texts, self.transform = texts, transform
        self.max_length, self.length_multiple = max_length, length_multiple
        self.max_tokens = max_tokens
        self._plan: tuple[int, list[Planned]] | None = None

    @property
    def num_samples(self) -> int:
        return self.texts.rows

    def __len__(self) -> int:
        return len(self._planned(np.arange(self.num_samples)))

    def __iter__(self) -> Iterator[Batch]:
        plan = [Planned(self.ranks.part(rows), length) for rows, length in self._epoch()]
        device = self.texts.ids.device
        every = np.concatenate([batch.rows for batch in plan]) if plan else np.zeros(0, np.int64)
        rows = torch.from_numpy(every).to(device)  # one copy per epoch: each one blocks the host
        ends = np.cumsum([len(batch.rows) for batch in plan])
        for i in self._numbers():
            yield self._assembled(rows[ends[i] - len(plan[i].rows) : ends[i]], plan[i])

    def weight(self, number: int) -> float:
        if self.ranks.world == 1:
            return 1.0
        rows = self._epoch()[number].rows
        return self.ranks.weight([self._targets(rows[p]) for p in self.ranks.parts(len(rows))])

    def samples_of(self, number: int) -> np.ndarray:
        return self.ranks.part(self._epoch()[number].rows)

    def _targets(self, rows: np.ndarray) -> int:
        """Return the number of targets that a training batch of these rows has."""
        if not (isinstance(self.transform, DynamicMasking) and len(rows)):
            return len(rows)
        return self.transform.count(int(self.texts.lengths[rows].sum()) - len(rows))

    def first(self, samples: int, batch_size: int | None = None) -> "TextLoader":
        return TextLoader(
            self.texts.take(np.arange(min(samples, self.num_samples))),
            batch_size or self.batch_size,
            max_length=self.max_length,
            length_multiple=self.length_multiple,
            max_tokens=self.max_tokens if batch_size is None else None,
        )

    def example(self) -> "TextLoader":
        """Return a loader of the first text, cut to a length that can be plotted."""
        length = min(int(self.texts.lengths[0]), EXAMPLE_TOKENS)
        beginning = Texts(
            self.texts.ids[:length],
            torch.tensor([0, length], device=self.texts.offsets.device),
            self.texts.labels[:1],
            self.texts.source,
            None if self.texts.targets is None else self.texts.targets[:length],
        )
        return TextLoader(beginning, 1, max_length=length, length_multiple=1, max_tokens=None)

    def longest(self) -> tuple[Batch, int]:
        row, length = int(np.argmax(self.texts.lengths)), int(self._padded.max())
        rows = torch.tensor([row], device=self.texts.ids.device)
        batch = self._assembled(rows, Planned(np.array([row]), length))
        tokens = max(self._batch_size(each) * each for each in np.unique(self._padded).tolist())
        return batch, min(-(-tokens // length), self.num_samples)

    def fingerprint(self) -> str:
        return self.texts.fingerprint()

    @cached_property
    def _padded(self) -> np.ndarray:
        """Length to which each text is padded."""
        multiples = -(-self.texts.lengths // self.length_multiple) * self.length_multiple
        return np.minimum(multiples, self.max_length)

    def _epoch(self) -> list[Planned]:
        """Return the batches of this epoch in the order in which they are given out."""
        epoch = self.epoch()
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._drawn())
        return self._plan[1]

    def _drawn(self) -> list[Planned]:
        if not self.shuffled:
            return self._planned(np.arange(self.num_samples))
        generator = self.generator()
        plan = self._planned(torch.randperm(self.num_samples, generator=generator).numpy())
        return [plan[i] for i in torch.randperm(len(plan), generator=generator).tolist()]

    def _planned(self, order: np.ndarray) -> list[Planned]:
        """Return the batches of an epoch, short ones first; `order` ranks texts of equal length."""
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
