"""The kernels that choose tokens, compared with plain PyTorch."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from asap_exp.ops import CoarseSettings, backend, choose_subset, coarse_settings, subsets
from asap_exp.ops.subsets import WEIGHTS, Subset
from tests.ops.test_fused_inference import DEVICE

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops.kernels.coarse.choice import TOKENS, farthest_tokens, takes
from asap_exp.ops.kernels.coarse.sequence_choice import MOST_AT_ONCE, sequence_tokens


def points(tokens: int, *, channels: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, tokens, channels, generator=generator).to(DEVICE, dtype)


def both(monkeypatch: pytest.MonkeyPatch, x: Tensor, count: int, **options) -> list[Subset]:
    """Return the subset by plain PyTorch, then by the kernel."""
    found = []
    for fused in (None, farthest_tokens):
        monkeypatch.setattr(subsets, "fused_choice", lambda choice, x, fused=fused: fused)
        found.append(choose_subset(x, count, choice="farthest", **options))
    return found


def assert_same(found: list[Subset]) -> None:
    plain, fused = found
    assert torch.equal(fused.tokens, plain.tokens)
    torch.testing.assert_close(fused.weight, plain.weight)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "count", "channels"), [(20, 5, 8), (33, 16, 16), (17, 1, 3), (150, 9, 40)]
)
def test_tokens_and_weights(monkeypatch, tokens, count, channels, dtype, weights):
    x = points(tokens, channels=channels, dtype=dtype)
    assert_same(both(monkeypatch, x, count, weights=weights))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_padding(monkeypatch, weights):
    mask = (torch.arange(20) >= torch.tensor([[20], [7]])).to(DEVICE)
    for count in (4, 9):  # the second sample has fewer than 9
        found = both(monkeypatch, points(20), count, weights=weights, key_padding_mask=mask)
        assert_same(found)
        spoilt = points(20).masked_fill(mask[:, None, :, None], torch.nan)
        again = both(monkeypatch, spoilt, count, weights=weights, key_padding_mask=mask)
        assert torch.equal(again[1].tokens, found[1].tokens)
        assert torch.equal(again[1].weight, found[1].weight)


def test_equal_tokens_are_in_the_cell_of_the_first(monkeypatch):
    x = points(12)
    x[:, :, 6:] = x[:, :, :6]
    assert_same(both(monkeypatch, x, 8, weights="voronoi"))


def test_views_and_empty_batches():
    x = points(30)
    tokens, sizes = farthest_tokens(x.transpose(1, 2).contiguous().transpose(1, 2), None, 6)
    assert torch.equal(tokens, farthest_tokens(x, None, 6)[0])
    assert (sizes.sum(-1) == 30).all()
    assert farthest_tokens(x[:0], None, 6)[0].shape == (0, 2, 6)


def test_what_the_kernel_takes(monkeypatch):
    for found in (points(4, dtype=torch.float64), points(4, channels=129), points(TOKENS + 1)):
        assert not takes(found)
    assert takes(points(4))
    assert subsets.fused_choice("farthest", points(4).cpu()) is None
    for choice in ("kmeans", "grid"):
        assert subsets.fused_choice(choice, points(4)) is None


@pytest.mark.gpu
def test_a_gpu_takes_the_kernel():
    assert subsets.fused_choice("farthest", points(4)) is farthest_tokens
    assert subsets.fused_by_padding("sequence", "equal", points(4)) is sequence_tokens


@pytest.mark.parametrize(
    ("n", "count"),
    [(20, 1), (20, 7), (20, 19), (20, 20), (33, 16), (MOST_AT_ONCE + 77, 100), (3, 2), (1, 1)],
)
def test_tokens_of_a_padded_sequence(n, count):
    """Padding of all, none, the end, the beginning, and some or all but one scattered."""
    i = torch.arange(n)
    scattered = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.6
    rows = [i >= 0, i < 0, i >= (n + 1) // 2, i < n // 2, scattered, i != n // 2]
    mask = torch.stack(rows).to(DEVICE)
    x = torch.zeros(len(rows), 2, n, 4, device=DEVICE, dtype=torch.float64)  # takes no kernel
    plain = choose_subset(x, count, key_padding_mask=mask)
    tokens, weight = sequence_tokens(mask, count)
    assert torch.equal(tokens, plain.tokens)
    torch.testing.assert_close(weight, plain.weight.float())


def test_ranks_beyond_32_bits():
    n, count = 70_000, 40_000
    mask = torch.zeros(1, n, dtype=torch.bool, device=DEVICE)
    mask[:, -1] = True
    tokens, weight = sequence_tokens(mask, count)
    assert torch.equal(tokens[0, 0].cpu(), (2 * torch.arange(count) + 1) * (n - 1) // (2 * count))
    assert (weight == (n - 1) / count).all()


def test_padded_sequences_of_an_empty_batch_or_a_view():
    mask = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.5
    assert sequence_tokens(mask.T[:0], 6)[0].shape == (0, 1, 6)
    found = sequence_tokens(mask.T, 6)
    for mine, expected in zip(found, sequence_tokens(mask.T.contiguous(), 6), strict=True):
        assert torch.equal(mine, expected)


def test_what_is_chosen_by_padding_alone(monkeypatch):
    assert subsets.fused_by_padding("sequence", "equal", points(4).cpu()) is None
    cuda = SimpleNamespace(dtype=torch.bfloat16)  # what is asked of the vectors
    monkeypatch.setattr(subsets, "capability", lambda x: (9, 0))
    assert subsets.fused_by_padding("sequence", "equal", cuda) is sequence_tokens
    for choice, weights, dtype in (
        ("random", "equal", torch.float32),
        ("sequence", "voronoi", torch.float32),
        ("sequence", "equal", torch.float64),
    ):
        refused = SimpleNamespace(dtype=dtype)
        assert subsets.fused_by_padding(choice, weights, refused) is None
    for other in (None, (7, 5), (8, 9)):
        monkeypatch.setattr(subsets, "capability", lambda x, other=other: other)
        assert subsets.fused_by_padding("sequence", "equal", cuda) is None
        assert subsets.fused_choice("farthest", points(4)) is None
    monkeypatch.setattr(subsets, "capability", lambda x: (9, 0))
    monkeypatch.setattr(subsets, "transformed", lambda: True)
    assert subsets.fused_by_padding("sequence", "equal", cuda) is None


def test_the_kernel_takes_the_place_of_the_choice(monkeypatch):
    mask = (torch.arange(20) >= torch.tensor([[20], [7]])).to(DEVICE)
    x = points(20)
    plain = choose_subset(x.double(), 9, key_padding_mask=mask)
    monkeypatch.setattr(subsets, "fused_by_padding", lambda *_: sequence_tokens)
    fused = choose_subset(x, 9, key_padding_mask=mask)
    assert torch.equal(fused.tokens, plain.tokens)
    torch.testing.assert_close(fused.weight, plain.weight.float())
    unpadded = choose_subset(x, 9)
    assert unpadded.tokens.shape == (1, 1, 9)


def test_a_graph_reads_a_subset_that_was_there_before_it(monkeypatch):
    settings, x = CoarseSettings(5, seed=12345), points(20)
    monkeypatch.setattr(coarse_settings, "graph_is_captured", lambda device: True)
    first, _ = settings.subsets(x, x, None)
    assert settings.subsets(x, x, None)[0].tokens is not first.tokens
    monkeypatch.setattr(coarse_settings, "graph_is_captured", lambda device: False)
    kept, _ = settings.subsets(x, x, None)
    monkeypatch.setattr(coarse_settings, "graph_is_captured", lambda device: True)
    assert settings.subsets(x, x, None)[0].tokens is kept.tokens
