"""Masking of tokens, as the target of a masked language model or as augmentation."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from asap_exp.data.tokens import MASK, NO_TARGET, SPECIAL_TOKENS, Texts, TokenBatch

KEPT_AS_MASK, KEPT_AS_RANDOM = 0.8, 0.1
"""Shares of the predicted tokens replaced by MASK and by a random token; the rest stay (BERT)."""


class DynamicMasking:
    """Masking for training: each batch predicts a fresh random `share` of its tokens.

    The number of predicted tokens follows from the lengths, so the host need not wait for the
    device.
    """

    def __init__(self, share: float, vocab_size: int) -> None:
        self.share, self.vocab_size = share, vocab_size

    def count(self, tokens: int) -> int:
        """Return how many tokens of a batch are predicted."""
        return max(round(self.share * tokens), 1)

    def __call__(self, batch: TokenBatch, labels: Tensor, tokens: int) -> tuple[TokenBatch, Tensor]:
        """Return the masked batch and its targets; `tokens` excludes padding and CLS."""
        count = self.count(tokens)
        scores = torch.rand(batch.ids.shape, device=batch.device)
        scores = scores.masked_fill(batch.ids < SPECIAL_TOKENS, -1.0).flatten()
        positions = scores.topk(count).indices
        targets = batch.ids.flatten()[positions]
        ids = batch.ids.flatten().clone()
        ids[positions] = corrupted(
            targets,
            torch.rand(count, device=batch.device),
            torch.randint(SPECIAL_TOKENS, self.vocab_size, (count,), device=batch.device),
        )
        return replace(batch, ids=ids.view_as(batch.ids), positions=positions), targets


class WordDropout:
    """Replacement of each token by MASK with probability `share`; nothing is predicted."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, batch: TokenBatch, labels: Tensor, tokens: int) -> tuple[TokenBatch, Tensor]:
        if not self.share:
            return batch, labels
        dropped = torch.rand(batch.ids.shape, device=batch.device) < self.share
        dropped &= batch.ids >= SPECIAL_TOKENS
        return replace(batch, ids=batch.ids.masked_fill(dropped, MASK)), labels


def corrupted(tokens: Tensor, draw: Tensor, other: Tensor) -> Tensor:
    """Replace `tokens` by MASK, by `other` or not at all, according to `draw`, uniform in 0..1."""
    kept = torch.where(draw < KEPT_AS_MASK + KEPT_AS_RANDOM, other, tokens)
    return torch.where(draw < KEPT_AS_MASK, MASK, kept)


def with_fixed_masks(texts: Texts, share: float, vocab_size: int, *, seed: int) -> Texts:
    """Mask `share` of the tokens of each text, at least one, by `seed` and position only.

    The first rows of a split get the same masks as in the whole split.
    """
    ids = texts.ids.cpu().numpy()
    row = np.repeat(np.arange(texts.rows), texts.lengths)
    streams = np.random.SeedSequence(seed).spawn(3)
    choice, draw, other = (np.random.default_rng(stream) for stream in streams)
    scores = np.where(ids < SPECIAL_TOKENS, 2.0, choice.random(len(ids)))
    order = np.lexsort((scores, row))
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids)) - texts.offsets.cpu().numpy()[row]
    allowed = np.bincount(row, weights=ids >= SPECIAL_TOKENS, minlength=texts.rows)
    count = np.minimum(np.maximum(np.round(share * allowed), 1), allowed)
    chosen = rank < count[row]
    replaced = corrupted(
        torch.from_numpy(ids),
        torch.from_numpy(draw.random(len(ids))),
        torch.from_numpy(other.integers(SPECIAL_TOKENS, vocab_size, len(ids), dtype=np.int32)),
    ).numpy()
    return replace(
        texts,
        ids=torch.from_numpy(np.where(chosen, replaced, ids).astype(np.int32)),
        targets=torch.from_numpy(np.where(chosen, ids, NO_TARGET).astype(np.int32)),
    )
