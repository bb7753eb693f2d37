"""Statistics of plans and representations: plain formulas, any scale, padded equals cut."""

import math

import pytest
import torch
from torch import Tensor

from asap_exp.attention import SinkhornAttention, SoftmaxAttention
from asap_exp.evaluate.plan_statistics import (
    column_sums,
    effective_rank,
    largest_column_sum,
    largest_entropy,
    mean_column_error,
    mean_row_entropy,
)

B, H, N, D = 3, 2, 6, 4
LENGTHS = (6, 4, 1)
OF_PLANS = (column_sums, largest_column_sum, mean_column_error, mean_row_entropy)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_plan(mask: Tensor | None = None) -> Tensor:
    q, k = 2 * normal(B, H, N, D), normal(B, H, N, D, seed=1)
    return SoftmaxAttention().plan(q, k, key_padding_mask=mask)


def padding() -> Tensor:
    return torch.arange(N) >= torch.tensor(LENGTHS)[:, None]


def test_plain_formulas() -> None:
    plan = softmax_plan()
    for b in range(B):
        for h in range(H):
            A = plan[b, h].tolist()
            sums = [sum(row[j] for row in A) for j in range(N)]
            entropies = [-sum(p * math.log(p) for p in row) for row in A]
            assert column_sums(plan)[b, h].tolist() == pytest.approx(sums)
            assert largest_column_sum(plan)[b, h].item() == pytest.approx(max(sums))
            error = sum(abs(c - 1) for c in sums) / N
            assert mean_column_error(plan)[b, h].item() == pytest.approx(error)
            assert mean_row_entropy(plan)[b, h].item() == pytest.approx(sum(entropies) / N)


def test_extremes() -> None:
    uniform, sink = torch.full((1, 1, N, N), 1 / N), torch.zeros(1, 1, N, N)
    sink[..., 2] = 1
    assert largest_column_sum(uniform).item() == pytest.approx(1)
    assert mean_row_entropy(uniform).item() == pytest.approx(largest_entropy(uniform).item())
    assert largest_column_sum(sink).item() == N
    assert mean_column_error(sink).item() == pytest.approx(2 * (N - 1) / N)
    assert mean_row_entropy(sink).item() == 0
    q, k = normal(1, 1, N, D), normal(1, 1, N, D, seed=1)
    plan = SinkhornAttention(num_iters=200).plan(q, k)
    assert largest_column_sum(plan).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("statistic", OF_PLANS)
@pytest.mark.parametrize("scale", [0.25, -3.0])
def test_a_plan_of_another_scale_has_the_same_statistics(statistic, scale: float) -> None:
    """As one whose rows sum to 1 - lambda, so that no method wins by its scale."""
    plan = softmax_plan()
    torch.testing.assert_close(statistic(scale * plan), statistic(plan))


@pytest.mark.parametrize("statistic", OF_PLANS)
def test_padded_equals_cut(statistic) -> None:
    mask = padding()
    plan = softmax_plan(mask)
    padded = statistic(plan, mask)
    for b, length in enumerate(LENGTHS):
        cut = statistic(plan[b : b + 1, :, :length, :length])[0]
        mine = padded[b][..., :length] if padded.dim() == 3 else padded[b]
        torch.testing.assert_close(mine, cut)


def test_rank_is_the_plain_formula_and_between_its_bounds() -> None:
    x = normal(B, N, D)
    for b in range(B):
        values = torch.linalg.eigvalsh(x[b].T @ x[b]).sqrt().tolist()
        shares = [value / sum(values) for value in values]
        entropy = -sum(p * math.log(p) for p in shares)
        assert effective_rank(x)[b].item() == pytest.approx(math.exp(entropy))
    alike = normal(1, N, 1) * normal(1, 1, D, seed=2)
    assert effective_rank(alike).item() == pytest.approx(1)
    assert effective_rank(torch.eye(D)[None]).item() == pytest.approx(D)
    torch.testing.assert_close(effective_rank(7 * x), effective_rank(x))


def test_rank_of_padded_tokens_is_that_of_the_valid_ones() -> None:
    x, mask = normal(B, N, D), padding()
    padded = effective_rank(x.masked_fill(mask[..., None], 1e6), mask)
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close(padded[b : b + 1], effective_rank(x[b : b + 1, :length]))


def test_largest_entropy_counts_valid_tokens() -> None:
    found = largest_entropy(softmax_plan(padding()), padding())
    assert found.tolist() == pytest.approx([math.log(6), math.log(4), math.log(2)])


def test_a_plan_without_mass_is_undefined() -> None:
    empty = torch.zeros(1, 1, N, N)
    assert all(statistic(empty).isnan().all() for statistic in OF_PLANS)
