"""The kernel that takes farthest points, compared with plain PyTorch."""

import pytest
import torch
from torch import Tensor

from asap_exp.ops import backend, choose_subset, subsets
from asap_exp.ops.subsets import WEIGHTS, Subset
from tests.ops.test_fused_inference import DEVICE

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops.kernels.coarse.choice import TOKENS, farthest_tokens, takes


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
