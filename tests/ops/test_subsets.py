"""Choices of a subset: which tokens, how they weigh, and that padding changes nothing."""

import pytest
import torch
from torch import Tensor

from asap_exp.ops import CoarseSettings, Subset, choose_subset
from asap_exp.ops.subsets import CHOICES, GRIDS, WEIGHTS

ANYWHERE = sorted(CHOICES.keys() - set(GRIDS))
every_choice = pytest.mark.parametrize("choice", CHOICES)
every_choice_of_texts = pytest.mark.parametrize("choice", ANYWHERE)
every_weight = pytest.mark.parametrize("weights", WEIGHTS)


def points(tokens: int = 16, *, batch: int = 2, heads: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(
        batch, heads, tokens, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def listed(subset: Subset, b: int, h: int) -> list[tuple[int, float]]:
    """Return the tokens of a head that have weight, with it, in their order."""
    tokens, weight = (x[min(b, len(x) - 1)] for x in subset)
    pairs = zip(tokens[min(h, len(tokens) - 1)], weight[min(h, len(weight) - 1)], strict=True)
    return [(token.item(), w.item()) for token, w in pairs if w > 0]


def test_sequence_takes_the_middles_of_equal_parts():
    subset = choose_subset(points(12), 4)
    assert subset.tokens.tolist() == [[[1, 4, 7, 10]]]
    assert subset.weight.tolist() == [[[3.0] * 4]]
    uneven = choose_subset(points(10), 4)
    assert uneven.tokens.tolist() == [[[1, 3, 6, 8]]]
    assert uneven.weight.tolist() == [[[2.5] * 4]]


@pytest.mark.parametrize(
    ("n", "width", "count", "rows", "columns"),
    [
        (64, 0, 16, [1, 3, 5, 7], [1, 3, 5, 7]),
        (64, 8, 4, [2, 6], [2, 6]),
        (64, 8, 15, [1, 4, 6], [0, 2, 4, 5, 7]),
        (32, 8, 8, [1, 3], [1, 3, 5, 7]),
        (32, 4, 8, [1, 3, 5, 7], [1, 3]),
        (8, 8, 3, [0], [1, 4, 6]),
        (8, 1, 3, [1, 4, 6], [0]),
    ],
)
def test_grid_takes_rows_and_columns(n, width, count, rows, columns):
    subset = choose_subset(points(n), count, choice="grid", grid_width=width)
    across = width or 8
    assert subset.tokens.flatten().tolist() == [y * across + x for y in rows for x in columns]
    assert subset.weight.sum() == pytest.approx(n)


@pytest.mark.parametrize(
    ("n", "width", "count", "expected"),
    [
        (16, 0, 4, ["#...", "..#.", "#...", "...#"]),
        (16, 0, 8, ["#.#.", ".#.#", "#.#.", ".#.#"]),
        (16, 0, 3, ["#...", "....", "..#.", "#..."]),
        (12, 6, 5, ["#..#..", "#.#.#."]),
        (12, 2, 5, ["#.", ".#", "..", "#.", ".#", "#."]),
        (4, 1, 2, [".", "#", ".", "#"]),
    ],
)
def test_staggered_rows_have_others_of_their_tokens(n, width, count, expected):
    subset = choose_subset(points(n), count, choice="staggered", grid_width=width)
    across = width or 4
    taken = torch.zeros(n, dtype=torch.bool)
    taken[subset.tokens.flatten()] = True
    rows = ["".join("#" if x else "." for x in row) for row in taken.view(-1, across)]
    assert rows == expected
    assert subset.tokens.shape[-1] == count
    assert subset.weight.sum() == pytest.approx(n)


def test_staggered_rows_take_as_many_of_every_row_and_column():
    """And any number of tokens, each once; a grid takes 121 of 256 if asked for 128."""
    for count in range(1, 256):
        tokens = choose_subset(points(256, batch=1), count, choice="staggered").tokens.flatten()
        assert len(set(tokens.tolist())) == count
        rows, columns = (torch.bincount(x, minlength=16) for x in (tokens // 16, tokens % 16))
        assert rows.max() - rows.min() <= 1
        assert columns.max() - columns.min() <= 3


def test_a_centre_without_tokens_stays_where_it_is() -> None:
    """Both centres of k-means start at the same place, so the first gets all tokens."""
    x = torch.full((1, 1, 8, 1), 5.0, dtype=torch.float64)
    x[0, 0, 7] = 9.0
    assert listed(choose_subset(x, 2, choice="kmeans"), 0, 0) == [(7, 4.0), (0, 4.0)]


def test_random_depends_on_the_seed_and_the_length_alone():
    chosen = [
        choose_subset(points(40, seed=seed), 8, choice="random", seed=number).tokens
        for seed, number in ((0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    often = torch.zeros(40)
    for seed in range(300):
        tokens = choose_subset(points(40, batch=1), 8, choice="random", seed=seed).tokens
        assert len(set(tokens.flatten().tolist())) == 8
        often[tokens.flatten()] += 1
    assert (often / 300 - 8 / 40).abs().max() < 0.08, "every token is as likely as any other"
    assert choose_subset(points(40), 8, choice="random", seed=2**31).tokens.amax() < 40


def test_farthest_starts_at_the_longest_and_then_covers():
    x = torch.tensor([[0.0, 0], [1, 0], [9, 0], [8, 1], [0, 5], [0, 4]])[None, None]
    assert choose_subset(x, 3, choice="farthest").tokens.tolist() == [[[2, 4, 1]]]
    weighted = choose_subset(x, 3, choice="farthest", weights="voronoi")
    assert weighted.weight.tolist() == [[[2.0, 2.0, 2.0]]]


def test_kmeans_takes_tokens_near_the_centres():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]], dtype=torch.float64)
    noise = points(15, batch=1, heads=1)[..., :2].clamp(-1.5, 1.5)
    x = centres.repeat(5, 1) + noise
    subset = choose_subset(x, 3, choice="kmeans", weights="voronoi")
    assert sorted(token % 3 for token in subset.tokens.flatten().tolist()) == [0, 1, 2]
    assert subset.weight.tolist() == [[[5.0, 5.0, 5.0]]]
    for token in subset.tokens.flatten().tolist():
        mean = x[0, 0, token % 3 :: 3].mean(dim=0)
        own = (x[0, 0, token % 3 :: 3] - mean).norm(dim=-1)
        assert own.min() == (x[0, 0, token] - mean).norm()


def test_kmeans_takes_no_token_twice():
    x = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 5])[None, None, :, None]
    found = listed(choose_subset(x, 3, choice="kmeans"), 0, 0)
    assert sorted(x[0, 0, token].item() for token, _ in found) == [0, 5]
    assert [weight for _, weight in found] == [4.0, 4.0]


@every_weight
@every_choice
def test_tokens_are_distinct_and_weights_sum_to_their_number(choice, weights):
    x = points(25)
    subset = choose_subset(x, 9, choice=choice, weights=weights)
    for b in range(2):
        for h in range(3):
            found = listed(subset, b, h)
            assert len({token for token, _ in found}) == len(found) <= 9
            assert sum(weight for _, weight in found) == pytest.approx(25)
    assert not subset.weight.requires_grad
    again = choose_subset(x, 9, choice=choice, weights=weights)
    assert torch.equal(again.tokens, subset.tokens)
    assert torch.equal(again.weight, subset.weight)


def test_voronoi_weights_count_the_nearest():
    x = points(25)
    subset = choose_subset(x, 5, weights="voronoi")
    assert subset.weight.shape == (2, 3, 5)
    for b in range(2):
        for h in range(3):
            taken = x[b, h, subset.tokens[0, 0]]
            nearest = (x[b, h][:, None] - taken).norm(dim=-1).argmin(dim=-1)
            assert subset.weight[b, h].tolist() == nearest.bincount(minlength=5).tolist()


# Nothing padded; the end; positions in between; two valid tokens; none.
MASK = torch.zeros(5, 16, dtype=torch.bool)
MASK[1, 9:] = True
MASK[2, [0, 3, 4, 7, 15]] = True
MASK[3] = torch.arange(16) != 5
MASK[3, 11] = False
MASK[4] = True


@every_weight
@every_choice_of_texts
def test_padded_sample_gets_the_tokens_of_the_cut_one(choice, weights):
    x = points(batch=5)
    spoilt = x.masked_fill(MASK[:, None, :, None], torch.nan)
    options = {"choice": choice, "weights": weights, "seed": 3}
    subset = choose_subset(spoilt, 6, **options, key_padding_mask=MASK)
    assert subset.weight.isfinite().all()
    for b in range(4):
        places = (~MASK[b]).nonzero().flatten().tolist()
        alone = choose_subset(x[b : b + 1, :, places], 6, **options)
        for h in range(3):
            expected = [(places[token], weight) for token, weight in listed(alone, 0, h)]
            assert listed(subset, b, h) == expected


@every_weight
@every_choice
def test_few_tokens_are_all_taken_with_weight_one(choice, weights):
    for count in (4, 5, 100):
        subset = choose_subset(points(4), count, choice=choice, weights=weights)
        assert listed(subset, 1, 2) == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)]
    single = choose_subset(points(1), 3, choice=choice, weights=weights)
    assert listed(single, 0, 0) == [(0, 1.0)]


@every_choice_of_texts
def test_few_valid_tokens_are_all_taken_though_they_are_alike(choice):
    x = torch.zeros_like(points(batch=5))
    subset = choose_subset(x, 4, choice=choice, weights="voronoi", key_padding_mask=MASK)
    assert listed(subset, 3, 0) == [(5, 1.0), (11, 1.0)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_choice
def test_weights_are_float32_and_nothing_of_meta_tensors_is_read(choice, dtype):
    x = points(25).to(dtype)
    options = {"choice": choice, "weights": "voronoi"}
    subset = choose_subset(x, 9, **options)
    assert subset.weight.dtype == torch.float32
    on_meta = choose_subset(x.to("meta"), 9, **options)
    assert [part.shape for part in on_meta] == [part.shape for part in subset]


WRONG = {
    "count": ({"count": 0}, ValueError, "count must be at least 1, got 0"),
    "choice": ({"choice": "all"}, ValueError, "choice must be one of sequence, grid, random"),
    "weights": ({"weights": "none"}, ValueError, "weights must be one of equal, voronoi"),
    "seed": ({"seed": -1}, ValueError, "seed must be at least 0"),
    "width": ({"choice": "grid", "grid_width": 5}, ValueError, "16 tokens in rows of grid_width=5"),
    "width of no grid": (
        {"grid_width": 4},
        ValueError,
        "grid_width=4 is read with choice='grid' or",
    ),
    "grid of texts": (
        {"choice": "grid", "key_padding_mask": torch.zeros(2, 16, dtype=torch.bool)},
        ValueError,
        "choice='grid' takes no key_padding_mask",
    ),
    "rows of texts": (
        {"choice": "staggered", "key_padding_mask": torch.zeros(2, 16, dtype=torch.bool)},
        ValueError,
        "choice='staggered' takes no key_padding_mask",
    ),
    "mask": ({"key_padding_mask": torch.zeros(2, 16)}, TypeError, "key_padding_mask must be a boo"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_arguments(case):
    options, error, message = case
    with pytest.raises(error, match=message):
        choose_subset(points(), **{"count": 4, **options})


def test_tokens_that_are_no_square_are_refused_as_a_grid():
    advice = r"15 tokens in a square \(grid_width=0\); take 'sequence', or give another grid_width$"
    with pytest.raises(ValueError, match=f"^choice='grid' cannot lay out {advice}"):
        choose_subset(points(15), 4, choice="grid")
    settings, x = CoarseSettings(4, "staggered"), points(17)  # no width but 1 and 17 divides 17
    with pytest.raises(ValueError, match=r"^coarse.choice='stag.* 17 tokens .*; take 'sequence'$"):
        settings.subsets(x, x, None)


def test_no_tokens_are_refused_by_the_name_of_the_argument():
    with pytest.raises(ValueError, match=r"^x has shape \(2, 3, 0, 4\); it needs at least one tok"):
        choose_subset(torch.zeros(2, 3, 0, 4), 2)
