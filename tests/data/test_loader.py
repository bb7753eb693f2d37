"""Order, sizes and rows of batches."""

import pytest
import torch

from asap_exp.core.ranks import Ranks
from asap_exp.data.loader import DeviceLoader, epoch_seed
from asap_exp.data.sources import Images


def numbered(rows: int) -> Images:
    """Return images whose pixels and labels hold their number."""
    number = torch.arange(rows)
    return Images(number.to(torch.uint8)[:, None, None, None], number, "numbered")


def loader(rows=10, batch_size=4, **options) -> DeviceLoader:
    return DeviceLoader(numbered(rows), batch_size, lambda x, y: (x, y), **options)


def order(found: DeviceLoader) -> list[int]:
    return torch.cat([labels for _, labels in found]).tolist()


def sizes(found: DeviceLoader) -> list[int]:
    return [len(labels) for _, labels in found]


def test_order_without_a_seed_is_that_of_the_rows():
    assert not loader().shuffled
    assert order(loader()) == list(range(10))


def test_images_stay_with_their_labels():
    for pixels, labels in loader(seed=0):
        assert torch.equal(pixels[:, 0, 0, 0].long(), labels)


def test_order_is_a_function_of_the_seed_and_the_epoch():
    orders = {}
    for seed in (0, 1, 2**32 - 1):
        for epoch in (0, 1, 59):
            torch.manual_seed(epoch)  # earlier draws must not matter
            orders[seed, epoch] = order(loader(40, seed=seed, epoch=lambda e=epoch: e))
            again = loader(40, seed=seed, epoch=lambda e=epoch: e)
            assert order(again) == order(again) == orders[seed, epoch]
    assert len({tuple(rows) for rows in orders.values()}) == len(orders)


def test_epoch_is_asked_for_at_every_pass():
    epoch = 0
    found = loader(40, seed=0, epoch=lambda: epoch)
    first = order(found)
    epoch = 1
    assert order(found) != first
    epoch = 0
    assert order(found) == first


def test_shuffling_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    order(loader(seed=3))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("rows", "batch_size", "plain", "shuffled"),
    [
        (10, 4, [4, 4, 2], [4, 4]),
        (8, 4, [4, 4], [4, 4]),
        (4, 4, [4], [4]),
        (5, 1, [1] * 5, [1] * 5),
        # Fewer rows than a batch still form one batch, so no epoch is empty.
        (3, 4, [3], [3]),
    ],
)
def test_incomplete_last_batch_is_dropped_only_when_shuffled(rows, batch_size, plain, shuffled):
    assert sizes(loader(rows, batch_size)) == plain
    assert len(loader(rows, batch_size)) == len(plain)
    assert sizes(loader(rows, batch_size, seed=0)) == shuffled
    assert len(loader(rows, batch_size, seed=0)) == len(shuffled)


def test_no_row_comes_twice_in_an_epoch_and_none_is_always_dropped():
    seen = set()
    for epoch in range(10):
        rows = order(loader(seed=0, epoch=lambda e=epoch: e))
        assert len(set(rows)) == len(rows) == 8
        seen |= set(rows)
    assert seen == set(range(10))


def test_first_rows_are_those_of_the_stored_order():
    for found in (loader(), loader(seed=0)):
        first = found.first(6)
        assert not first.shuffled
        assert order(first) == list(range(6))
        assert sizes(first) == [4, 2]
        assert sizes(found.first(3)) == [3]
        assert order(found.first(100)) == list(range(10))
        assert first.images.source == "numbered"


def test_transform_is_applied_to_whole_batches():
    found = DeviceLoader(numbered(10), 4, lambda x, y: (x.float().mean(), y.max()))
    assert [(x.item(), y.item()) for x, y in found] == [(1.5, 3), (5.5, 7), (8.5, 9)]
    means = [x.item() for x, _ in found.first(6)]
    assert means == [1.5, 4.5]


def test_epoch_seeds_are_distinct():
    pairs = [(seed, epoch) for seed in (0, 1, 2, 2**32 - 1) for epoch in range(100)]
    seeds = {epoch_seed(seed, epoch) for seed, epoch in pairs}
    assert len(seeds) == len(pairs)
    assert max(seeds) < 2**63


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("seed", [None, 0])
def test_ranks_partition_every_batch(world: int, seed: int | None) -> None:
    whole = loader(13, 6, seed=seed)
    ranks = [loader(13, 6, seed=seed, ranks=Ranks(rank, world)) for rank in range(world)]
    assert {len(each) for each in ranks} == {len(whole)}
    for number, (batch, *parts) in enumerate(zip(whole, *ranks, strict=True)):
        weights = [each.weight(number) for each in ranks]
        counted = [part[1] for part, weight in zip(parts, weights, strict=True) if weight]
        assert torch.equal(torch.cat(counted), batch[1])
        assert all(len(labels) for _, labels in parts), "every rank makes every step"
        means = [w * y.float().mean() for w, (_, y) in zip(weights, parts, strict=True)]
        torch.testing.assert_close(torch.stack(means).mean(), batch[1].float().mean())


def test_ranks_draw_from_seeds_of_their_own() -> None:
    seeds = {
        epoch_seed(seed, epoch, rank)
        for seed in (0, 1, 2**32 - 1)
        for epoch in (0, 10**6)
        for rank in (0, 1, 1023)
    }
    assert len(seeds) == 18
    assert max(seeds) < 2**63
    assert epoch_seed(3, 5, 0) == epoch_seed(3, 5)


def test_first_samples_are_the_same_on_all_ranks() -> None:
    assert order(loader(13, 6, ranks=Ranks(1, 2)).first(5)) == list(range(5))
