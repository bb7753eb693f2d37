"""Batches of texts: every text once, grouped by length, within the token budget."""

import numpy as np
import pytest
import torch

from asap_exp.core.ranks import Ranks
from asap_exp.data.masking import DynamicMasking, WordDropout, with_fixed_masks
from asap_exp.data.text_loader import EXAMPLE_TOKENS, TextLoader
from asap_exp.data.tokens import PAD, Texts, truncated
from tests.data.test_tokens import ragged

LENGTHS = np.random.default_rng(0).integers(0, 90, 200).tolist()
MAX_LENGTH = 72


def loader(lengths=LENGTHS, batch_size=16, **options) -> TextLoader:
    """Return texts whose label is their row."""
    given = {"max_length": MAX_LENGTH, "length_multiple": 16, "max_tokens": 512} | options
    return TextLoader(truncated(ragged(lengths), MAX_LENGTH, "head"), batch_size, **given)


def rows_of(found: TextLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in found]


def token_rows(texts: Texts) -> list[list[int]]:
    return [part.tolist() for part in texts.ids.split(texts.lengths.tolist())]


@pytest.mark.parametrize("seed", [None, 0])
def test_every_text_comes_once_an_epoch_with_its_own_tokens(seed):
    found = loader(seed=seed)
    texts = token_rows(found.texts)
    seen = []
    for batch, labels in found:
        mask = batch.key_padding_mask
        for row, label in enumerate(labels.tolist()):
            valid = slice(None) if mask is None else ~mask[row]
            assert batch.ids[row][valid].tolist() == texts[label]
            assert (batch.ids[row] == PAD).sum() == batch.ids.shape[1] - len(texts[label])
            seen.append(label)
    assert sorted(seen) == list(range(len(LENGTHS)))
    assert len(found) == len(rows_of(found))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("world", [1, 3])
def test_the_samples_of_a_batch_are_told_by_their_numbers(seed, world):
    for rank in range(world):
        found = loader(seed=seed, batch_size=4).shared(Ranks(rank, world))
        expected = [found.samples_of(number).tolist() for number in range(len(found))]
        assert rows_of(found) == expected


@pytest.mark.parametrize("seed", [None, 5])
def test_budget_and_batch_size_hold(seed):
    found = loader(seed=seed, batch_size=10, max_tokens=300)
    for batch, _ in found:
        assert batch.ids.numel() <= 300
        assert len(batch) <= 10
    # One text always fits, even if it uses up the budget.
    longest = [batch for batch, _ in loader(max_tokens=MAX_LENGTH) if batch.ids.shape[1] == 72]
    assert longest
    assert all(len(batch) == 1 for batch in longest)


def test_there_are_as_many_shapes_as_lengths_and_one():
    shapes = [tuple(batch.ids.shape) for epoch in range(4) for batch, _ in loader(seed=epoch)]
    assert {length for _, length in shapes} <= {16, 32, 48, 64, 72}
    assert len(set(shapes)) <= 5 + 1


def test_little_of_a_batch_is_padding():
    batches = [batch for batch, _ in loader(seed=0)]
    places = sum(batch.ids.numel() for batch in batches)
    padded = sum(int((batch.ids == PAD).sum()) for batch in batches)
    in_order = len(LENGTHS) * MAX_LENGTH
    assert padded / places < 0.25 < 1 - sum(map(len, token_rows(loader().texts))) / in_order


def test_mask_is_left_out_where_nothing_is_padded():
    full = loader([100] * 9)
    assert [batch.key_padding_mask for batch, _ in full] == [None, None]
    for batch, _ in loader([100] * 9 + [3]):
        lengths = (batch.ids != PAD).sum(dim=1)
        assert (batch.key_padding_mask is None) == bool((lengths == batch.ids.shape[1]).all())


def test_epochs_differ_and_follow_from_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            torch.manual_seed(epoch + 10 * seed)  # earlier draws must not matter
            orders[seed, epoch] = rows_of(loader(seed=seed, epoch=lambda e=epoch: e))
            assert rows_of(loader(seed=seed, epoch=lambda e=epoch: e)) == orders[seed, epoch]
    assert len({str(order) for order in orders.values()}) == 4
    assert len({len(order) for order in orders.values()}) == 1


def test_batches_of_one_length_are_mixed_anew_and_come_in_any_order():
    first, second = (rows_of(loader(seed=seed)) for seed in (0, 1))
    assert {frozenset(rows) for rows in first} != {frozenset(rows) for rows in second}
    lengths = [batch.ids.shape[1] for batch, _ in loader(seed=0)]
    assert lengths != sorted(lengths)
    plain = [batch.ids.shape[1] for batch, _ in loader()]
    assert plain == sorted(plain)


def test_first_rows_are_those_of_the_stored_order_and_unchanged():
    found = loader(seed=0, transform=WordDropout(0.9))
    part = found.first(7)
    assert not part.shuffled
    assert sorted(row for rows in rows_of(part) for row in rows) == list(range(7))
    assert token_rows(part.texts) == token_rows(found.texts)[:7]
    assert loader().first(10**6).num_samples == len(LENGTHS)
    one = list(loader(max_tokens=MAX_LENGTH).first(12, batch_size=12))
    assert len(one) == 1
    assert len(one[0][1]) == 12, "the budget does not cut a batch that was asked for"


def test_example_is_short_and_has_no_padding():
    found = loader([200, 5])
    found.max_length = 72
    (batch, labels), *more = list(found.example())
    assert not more
    assert batch.ids.shape == (1, EXAMPLE_TOKENS)
    assert batch.key_padding_mask is None
    assert labels.tolist() == [0]
    assert next(iter(loader([5, 200]).example()))[0].ids.shape == (1, 6)


def test_masked_tokens_come_with_their_places():
    texts = with_fixed_masks(truncated(ragged(LENGTHS), MAX_LENGTH, "head"), 0.15, 5000, seed=0)
    found = TextLoader(texts, 16, max_length=MAX_LENGTH, length_multiple=16, max_tokens=512)
    total = 0
    for batch, targets in found:
        places = batch.positions % batch.ids.shape[1]
        # Token i of text r is 10 + 200 r + i, after a CLS token.
        assert torch.equal((targets - 10) % 200 + 1, places)
        if batch.key_padding_mask is not None:
            assert not batch.key_padding_mask.flatten()[batch.positions].any()
        total += len(targets)
    assert total == int((texts.targets >= 0).sum())


def test_short_last_texts_are_batched_with_longer_ones():
    found = loader([1] * 3 + [60] * 2, max_tokens=10_000, batch_size=100)
    batches = list(found)
    assert len(batches) == 1
    assert batches[0][0].ids.shape == (5, 64)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_partition_every_batch(world: int) -> None:
    """Ranks make equal numbers of steps on texts padded to equal lengths."""
    whole = loader(seed=1)
    ranks = [loader(seed=1, ranks=Ranks(rank, world)) for rank in range(world)]
    for number, (batch, *parts) in enumerate(zip(whole, *ranks, strict=True)):
        weights = [each.weight(number) for each in ranks]
        counted = [part for part, weight in zip(parts, weights, strict=True) if weight]
        assert torch.equal(torch.cat([part[1] for part in counted]), batch[1])
        assert {part[0].ids.shape[1] for part in parts} == {batch[0].ids.shape[1]}
        rows = [len(part[1]) for part in counted]
        assert [w for w in weights if w] == pytest.approx([world * n / sum(rows) for n in rows])
        assert sum(weights) == pytest.approx(world)


def test_weight_of_masked_texts_is_their_share_of_the_predicted_tokens() -> None:
    options = {"seed": 1, "transform": DynamicMasking(0.15, 100)}
    ranks = [loader(ranks=Ranks(rank, 2), **options) for rank in range(2)]
    for number, parts in enumerate(zip(*ranks, strict=True)):
        weights = [each.weight(number) for each in ranks]
        targets = [len(part[1]) * bool(w) for part, w in zip(parts, weights, strict=True)]
        assert weights == pytest.approx([2 * n / sum(targets) for n in targets])
