"""Texts of different lengths in one token array: selected, truncated, joined, masked."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from asap_exp.data.masking import DynamicMasking, WordDropout, with_fixed_masks
from asap_exp.data.tokens import (
    CLS,
    MASK,
    NO_TARGET,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    Texts,
    TokenBatch,
    blocks,
    offsets_of,
    truncated,
)

LENGTHS = [3, 0, 7, 1, 12, 5]
VOCAB = 300


def ragged(lengths: list[int]) -> Texts:
    """Return texts whose token i of text r is 10 + 200 r + i, which identifies each token."""
    ids = [10 + 200 * row + i for row, n in enumerate(lengths) for i in range(n)]
    return Texts(
        torch.tensor(ids, dtype=torch.int32),
        torch.from_numpy(offsets_of(np.asarray(lengths))),
        torch.arange(len(lengths)),
        "numbered",
    )


def listed(texts: Texts) -> list[list[int]]:
    ends = texts.offsets.tolist()
    return [texts.ids[a:b].tolist() for a, b in pairwise(ends)]


def test_rows_are_taken_with_their_labels_and_targets():
    texts = ragged(LENGTHS)
    whole = listed(texts)
    rows = np.array([4, 1, 0])
    part = texts.take(rows)
    assert listed(part) == [whole[i] for i in rows]
    assert part.labels.tolist() == rows.tolist()
    assert part.lengths.tolist() == [12, 0, 3]
    masked = with_fixed_masks(truncated(texts, 16, "head"), 0.5, VOCAB, seed=0)
    assert torch.equal(masked.take(np.arange(6)).targets, masked.targets)
    assert texts.take(np.arange(0)).rows == 0


def test_head_of_a_long_text_is_kept():
    cut = listed(truncated(ragged(LENGTHS), 6, "head"))
    whole = listed(ragged(LENGTHS))
    assert cut == [[CLS, *text[:5]] for text in whole]


def test_ends_of_a_long_text_are_kept():
    cut = listed(truncated(ragged(LENGTHS), 9, "ends"))
    whole = listed(ragged(LENGTHS))
    assert cut[4] == [CLS, *whole[4][:2], *whole[4][-6:]]
    assert [cut[i] for i in (0, 1, 2, 3, 5)] == [[CLS, *whole[i]] for i in (0, 1, 2, 3, 5)]


def test_empty_text_is_the_cls_token():
    assert listed(truncated(ragged([0, 2]), 8, "head")) == [[CLS], [CLS, 210, 211]]


@pytest.mark.parametrize("joined", [False, True])
def test_blocks_hold_every_token_in_order(joined):
    texts = ragged(LENGTHS)
    found = listed(blocks(texts, 6, joined=joined))
    assert all(block[0] == CLS and len(block) == 6 for block in found[:-1])
    assert 1 < len(found[-1]) <= 6
    stream = [token for block in found for token in block[1:]]
    expected = []
    for text in listed(texts):
        expected += text if joined else [*text, SEP]
    assert stream == expected


def test_blocks_of_nothing_are_none():
    assert blocks(ragged([0]), 6, joined=True).rows == 0


def test_fingerprint_depends_on_tokens_lengths_and_labels():
    texts = ragged(LENGTHS)
    others = [
        ragged([3, 1, 7, 1, 12, 4]),
        texts.take(np.array([1, 0, 2, 3, 4, 5])),
        Texts(texts.ids + 1, texts.offsets, texts.labels, "x"),
        Texts(texts.ids, texts.offsets, texts.labels + 1, "x"),
    ]
    prints = {texts.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(prints) == 5
    assert Texts(texts.ids, texts.offsets, texts.labels, "y").fingerprint() == texts.fingerprint()


def token_batch(rows=40, length=50, padded=10) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIAL_TOKENS, VOCAB, (rows, length), generator=generator)
    ids[:, 0] = CLS
    mask = torch.zeros(rows, length, dtype=torch.bool)
    mask[::2, length - padded :] = True
    return TokenBatch(ids.masked_fill(mask, PAD), mask)


def test_dynamic_masks_are_the_share_that_was_asked_for():
    torch.manual_seed(0)
    batch = token_batch(rows=200)
    tokens = int((batch.ids >= SPECIAL_TOKENS).sum())
    masked, targets = DynamicMasking(0.15, VOCAB)(batch, torch.zeros(200), tokens)
    assert len(targets) == len(masked.positions) == round(0.15 * tokens)
    assert len(masked.positions.unique()) == len(targets)
    before, after = batch.ids.flatten(), masked.ids.flatten()
    assert torch.equal(before[masked.positions], targets)
    assert (targets >= SPECIAL_TOKENS).all(), "neither padding nor CLS is predicted"
    changed = (before != after).nonzero()[:, 0]
    assert set(changed.tolist()) <= set(masked.positions.tolist())
    shown = after[masked.positions]
    as_mask = (shown == MASK).double().mean().item()
    as_itself = (shown == targets).double().mean().item()
    assert as_mask == pytest.approx(0.8, abs=0.03)
    assert as_itself == pytest.approx(0.1, abs=0.03)
    assert masked.key_padding_mask is batch.key_padding_mask


def test_dynamic_masks_are_drawn_anew_and_follow_the_seed():
    batch = token_batch()
    masking = DynamicMasking(0.15, VOCAB)
    torch.manual_seed(0)
    first, second = (masking(batch, torch.zeros(1), 1500)[0] for _ in range(2))
    assert not torch.equal(first.positions, second.positions)
    torch.manual_seed(0)
    again = masking(batch, torch.zeros(1), 1500)[0]
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.positions, again.positions)


def test_fixed_masks_follow_the_seed_and_the_place_alone():
    texts = truncated(ragged([40, 3, 0, 25, 60, 1]), 64, "head")
    fixed = with_fixed_masks(texts, 0.15, VOCAB, seed=3)
    again = with_fixed_masks(texts, 0.15, VOCAB, seed=3)
    assert torch.equal(fixed.ids, again.ids)
    assert not torch.equal(fixed.ids, with_fixed_masks(texts, 0.15, VOCAB, seed=4).ids)
    first = with_fixed_masks(texts.take(np.arange(3)), 0.15, VOCAB, seed=3)
    assert torch.equal(first.targets, fixed.take(np.arange(3)).targets)
    # The share of each text, at least one token; none in the text that has only CLS.
    chosen = fixed.targets != NO_TARGET
    counts = [int(part.sum()) for part in chosen.split(texts.lengths.tolist())]
    assert counts == [6, 1, 0, 4, 9, 1]
    assert torch.equal(fixed.targets[chosen], texts.ids[chosen])
    assert torch.equal(fixed.ids[~chosen], texts.ids[~chosen])


def test_word_dropout_touches_no_special_token():
    torch.manual_seed(0)
    batch, labels = token_batch(), torch.arange(40)
    dropped, same = WordDropout(0.3)(batch, labels, 0)
    assert same is labels
    assert dropped.positions is None
    special = batch.ids < SPECIAL_TOKENS
    assert torch.equal(dropped.ids[special], batch.ids[special])
    share = (dropped.ids[~special] == MASK).double().mean().item()
    assert share == pytest.approx(0.3, abs=0.05)
    kept = dropped.ids != MASK
    assert torch.equal(dropped.ids[kept], batch.ids[kept])
    assert WordDropout(0.0)(batch, labels, 0)[0] is batch
