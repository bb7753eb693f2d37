"""Tensors of token ids: a network's input, and the texts of a split."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.export import register_dataclass

from asap_exp.data.sources import fingerprint

PAD, CLS, SEP, MASK = range(4)
SPECIAL_TOKENS = 4
"""Number of special tokens, which have the lowest ids; the tokenizer's ids follow."""
NO_TARGET = -1
"""Target of a token that is not predicted."""


@dataclass(frozen=True)
class TokenBatch:
    """Batch of texts: `ids` int64 `[B, N]` and `key_padding_mask` `[B, N]`, True = padded.

    The mask is None if nothing is padded. `positions` index the flattened batch at the tokens to be
    predicted; None if the task is classification.
    """

    ids: Tensor
    key_padding_mask: Tensor | None = None
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def to(self, *args: object, **kwargs: object) -> "TokenBatch":
        """Move or convert the tensors as Tensor.to does; ids stay integers."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(*args, **kwargs)  # type: ignore[call-overload]

        return TokenBatch(
            self.ids.to(*args, **kwargs),  # type: ignore[call-overload]
            moved(self.key_padding_mask),
            moved(self.positions),
        )


register_dataclass(TokenBatch)  # so that pytree utilities find, move and hash its tensors


@dataclass(frozen=True)
class Texts:
    """Texts of different lengths, concatenated in `ids` int32 `[tokens]`.

    Text i is `ids[offsets[i] : offsets[i + 1]]`; `labels` int64 `[rows]`. `targets` int32
    `[tokens]` holds the original ids of masked tokens and NO_TARGET elsewhere.
    """

    ids: Tensor
    offsets: Tensor
    labels: Tensor
    source: str
    targets: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, on the host."""
        return np.diff(self.offsets.cpu().numpy())

    def take(self, rows: np.ndarray) -> "Texts":
        lengths = self.lengths[rows]
        offsets = offsets_of(lengths)
        starts = self.offsets.cpu().numpy()[rows]
        index = torch.from_numpy(np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1]))
        index = index.to(self.ids.device)
        return Texts(
            self.ids[index],
            torch.from_numpy(offsets).to(self.offsets.device),
            self.labels[torch.from_numpy(rows).to(self.labels.device)],
            self.source,
            None if self.targets is None else self.targets[index],
        )

    def to(self, device: torch.device) -> "Texts":
        return replace(
            self,
            ids=self.ids.to(device),
            offsets=self.offsets.to(device),
            labels=self.labels.to(device),
            targets=None if self.targets is None else self.targets.to(device),
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of tokens, lengths, labels and targets in order."""
        parts = (self.ids, self.offsets, self.labels, self.targets)
        return fingerprint(*(part for part in parts if part is not None))


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return int64 `[rows + 1]`: the start of each text, and the end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def truncated(texts: Texts, max_length: int, truncation: str) -> Texts:
    """Put a CLS token before each text and cut it to `max_length` tokens in total.

    For longer texts `head` keeps the beginning; `ends` keeps the first quarter of the room from the
    beginning and fills the rest from the end (Sun et al., 2019, How to Fine-Tune BERT for Text
    Classification).
    """
    room = max_length - 1
    head = room if truncation == "head" else room // 4
    lengths = texts.lengths
    kept = np.minimum(lengths, room)
    offsets = offsets_of(kept + 1)
    row = np.repeat(np.arange(len(kept)), kept + 1)
    place = np.arange(offsets[-1]) - offsets[row] - 1  # -1 is the CLS token
    source = place + texts.offsets.cpu().numpy()[row]
    source += np.where(place >= head, lengths[row] - kept[row], 0)
    return with_cls(texts, place, source, offsets)


def blocks(texts: Texts, max_length: int, *, joined: bool) -> Texts:
    """Concatenate all texts and cut them into blocks of `max_length` tokens, CLS token included.

    Each block begins with CLS. A SEP token separates two texts, unless they are `joined`, that is,
    lines of one text. The last block may be shorter.
    """
    ids = texts.ids.cpu().numpy()
    if not joined:
        ids = np.insert(ids, texts.offsets.cpu().numpy()[1:], SEP)
    room = max_length - 1
    count = -(-len(ids) // room)
    kept = np.full(count, room, dtype=np.int64)
    if count:
        kept[-1] = len(ids) - room * (count - 1)
    offsets = offsets_of(kept + 1)
    row = np.repeat(np.arange(count), kept + 1)
    place = np.arange(offsets[-1]) - offsets[row] - 1
    stream = Texts(
        torch.from_numpy(ids), texts.offsets, torch.zeros(count, dtype=torch.int64), texts.source
    )
    return with_cls(stream, place, place + room * row, offsets)


def with_own_tokens(texts: Texts) -> Texts:
    """Remove texts that hold only special tokens, since nothing can be predicted there."""
    row = np.repeat(np.arange(texts.rows), texts.lengths)
    own = np.bincount(row, weights=texts.ids.cpu().numpy() >= SPECIAL_TOKENS, minlength=texts.rows)
    return texts if own.all() else texts.take(own.nonzero()[0])


def with_cls(texts: Texts, place: np.ndarray, source: np.ndarray, offsets: np.ndarray) -> Texts:
    """Gather the tokens of `texts` at `source`, with a CLS token where `place` is -1."""
    ids = np.full(len(place), CLS, dtype=np.int32)
    ids[place >= 0] = texts.ids.cpu().numpy()[source[place >= 0]]
    return replace(texts, ids=torch.from_numpy(ids), offsets=torch.from_numpy(offsets))
