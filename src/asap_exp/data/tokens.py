"""Token ids: what a network receives, and where they are kept."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.export import register_dataclass

from asap_exp.data.sources import fingerprint

PAD, CLS, SEP, MASK = range(4)
SPECIAL_TOKENS = 4
"""The ids below this are special; a tokenizer's own come after them."""
NO_TARGET = -1


@dataclass(frozen=True)
class TokenBatch:
    """A batch of texts: `ids` int64 `[B, N]` and `key_padding_mask` `[B, N]`, True = padded.

    The mask is None where no place is padded. `positions` are the places in the flattened batch
    whose tokens are to be predicted; None where a class a text is.
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
        """As Tensor.to; ids stay whole numbers."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(*args, **kwargs)  # type: ignore[call-overload]

        return TokenBatch(
            self.ids.to(*args, **kwargs),  # type: ignore[call-overload]
            moved(self.key_padding_mask),
            moved(self.positions),
        )


register_dataclass(TokenBatch)  # its tensors are found, moved and hashed like those of a tuple


@dataclass(frozen=True)
class Texts:
    """Texts of different lengths, one after the other in `ids` int32 `[tokens]`.

    Text i is `ids[offsets[i] : offsets[i + 1]]`; `labels` int64 `[rows]`. `targets` int32
    `[tokens]` is what the tokens were before they were masked, NO_TARGET where none was.
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
        """Tokens of each text, on the host."""
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
        """SHA-256 over tokens, lengths, labels and targets in their order."""
        parts = (self.ids, self.offsets, self.labels, self.targets)
        return fingerprint(*(part for part in parts if part is not None))


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """`[rows + 1]` int64: where each text begins, and the end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def truncated(texts: Texts, max_length: int, truncation: str) -> Texts:
    """Each text behind a CLS token, at most `max_length` tokens with it.

    Of a longer one `head` keeps the beginning; `ends` keeps the beginning and, three times as many,
    the last tokens (Sun et al., 2019, How to Fine-Tune BERT for Text Classification).
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
    """All texts in a row, cut into blocks of `max_length` tokens with the CLS token in front.

    Between two texts stands a SEP token, unless they are `joined`: lines of one text. The last
    block may be shorter.
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
    """Without those that hold special tokens alone: nothing can be predicted there."""
    row = np.repeat(np.arange(texts.rows), texts.lengths)
    own = np.bincount(row, weights=texts.ids.cpu().numpy() >= SPECIAL_TOKENS, minlength=texts.rows)
    return texts if own.all() else texts.take(own.nonzero()[0])


def with_cls(texts: Texts, place: np.ndarray, source: np.ndarray, offsets: np.ndarray) -> Texts:
    """The tokens of `texts` at `source`, a CLS token where `place` is -1."""
    ids = np.full(len(place), CLS, dtype=np.int32)
    ids[place >= 0] = texts.ids.cpu().numpy()[source[place >= 0]]
    return replace(texts, ids=torch.from_numpy(ids), offsets=torch.from_numpy(offsets))
