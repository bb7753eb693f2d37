"""The streaming ridge fit against a plain least squares on all features at once."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asap_exp.attention import LayerInputs, SinkhornAttention
from asap_exp.calibration import ridge
from asap_exp.calibration.ridge import SUMS, NormalEquations, random_slices
from asap_exp.ops import (
    adaptive_features,
    logit_features,
    query_features,
    sinkhorn_duals,
    sliced_potentials,
)
from tests.calibration.inputs import DIM, HEADS, SLICES, TOKENS, inputs, poisoned


def plain_rows(data: LayerInputs, theta: Tensor, T: int) -> tuple[np.ndarray, np.ndarray]:
    """All features `[H, rows, P]` and centred duals `[H, rows]` over the valid tokens."""
    q, k, _, mask = data
    options: dict[str, Any] = {"key_padding_mask": mask}
    phi, psi = (f(q, k, theta, **options) for f in (sliced_potentials, adaptive_features))
    chi = logit_features(q, k, **options)
    parts = [phi, query_features(q, **options), *psi.unbind(2), chi]
    features = torch.cat(parts, dim=2).double()
    dual = sinkhorn_duals(q, k, num_iters=T, **options).ready.double()
    valid = torch.ones(q.shape[0], TOKENS, dtype=torch.bool) if mask is None else ~mask
    rows, targets = [], []
    for head in range(HEADS):
        rows.append(np.concatenate([features[b, head][:, valid[b]].T for b in range(len(q))]))
        targets.append(
            np.concatenate(
                [dual[b, head, valid[b]] - dual[b, head, valid[b]].mean() for b in range(len(q))]
            )
        )
    return np.stack(rows), np.stack(targets)


@pytest.mark.parametrize("padded", [False, True])
def test_fit_is_least_squares(padded: bool) -> None:
    theta = random_slices(HEADS, SLICES, DIM, seed=0)
    data = inputs(6, 1, padded=padded)
    equations = NormalEquations(theta, ("adaptive", "logits"))
    equations.add(data, SinkhornAttention(num_iters=5))
    rows, targets = plain_rows(data, theta, T=5)
    for features in (equations.potentials, equations.query_features, slice(0, 12), slice(None)):
        solution = equations.solve(features, ridge=1e-12)
        for head in range(HEADS):
            x, y = rows[head][:, features], targets[head]
            expected, *_ = np.linalg.lstsq(x, y, rcond=None)
            np.testing.assert_allclose(solution.weight[head], expected, rtol=1e-5, atol=1e-7)
            residual = y - x @ expected
            r_squared = 1 - residual @ residual / (y @ y)
            assert solution.r_squared[head].item() == pytest.approx(r_squared, abs=1e-8)


def test_ridge_is_that_of_the_normalised_gram_matrix() -> None:
    theta = random_slices(HEADS, SLICES, DIM, seed=0)
    data = inputs(6, 1)
    equations = NormalEquations(theta, ("adaptive", "logits"))
    equations.add(data, SinkhornAttention(num_iters=5))
    ridge = 0.3
    solution = equations.solve(slice(None), ridge)
    rows, targets = plain_rows(data, theta, T=5)
    for head in range(HEADS):
        scale = np.linalg.norm(rows[head], axis=0)
        x = rows[head] / scale
        system = x.T @ x + ridge * np.eye(x.shape[1])
        expected = np.linalg.solve(system, x.T @ targets[head]) / scale
        np.testing.assert_allclose(solution.weight[head], expected, rtol=1e-9)
        assert solution.condition[head].item() == pytest.approx(np.linalg.cond(system), rel=1e-6)


def test_batches_add_up_to_the_whole() -> None:
    theta = random_slices(HEADS, SLICES, DIM, seed=0)
    teacher = SinkhornAttention(num_iters=3)
    data = inputs(5, 2, padded=True)
    whole, parts = NormalEquations(theta), NormalEquations(theta)
    whole.add(data, teacher)
    for rows in (slice(0, 2), slice(2, 5)):
        parts.add(LayerInputs(*(t[rows] for t in data if t is not None)), teacher)
    torch.testing.assert_close(parts.gram, whole.gram, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts.moment, whole.moment, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts.energy, whole.energy, rtol=1e-6, atol=1e-6)


def test_sums_do_not_depend_on_the_order_of_the_batches() -> None:
    """To the last bit: whatever the number of ranks, each of which has some of the batches."""
    theta = random_slices(HEADS, SLICES, DIM, seed=0)
    teacher = SinkhornAttention(num_iters=3)
    batches = [inputs(2, seed) for seed in range(40)]
    one, other = NormalEquations(theta), NormalEquations(theta)
    for equations, order in ((one, batches), (other, [*batches[1::2], *batches[::2]])):
        for batch in order:
            equations.add(batch, teacher)
        equations.reduce()
    for name in SUMS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_padded_tokens_do_not_enter_the_fit() -> None:
    theta = random_slices(HEADS, SLICES, DIM, seed=0)
    teacher = SinkhornAttention(num_iters=3)
    data = inputs(4, 3, padded=True)
    clean = NormalEquations(theta)
    clean.add(data, teacher)
    dirty = NormalEquations(theta)
    dirty.add(poisoned(data), teacher)
    assert torch.equal(clean.gram, dirty.gram)
    assert torch.equal(clean.moment, dirty.moment)


def test_a_constant_feature_gets_no_weight_and_no_nan() -> None:
    theta = torch.zeros(HEADS, SLICES, DIM)  # every potential of a zero direction is zero
    equations = NormalEquations(theta)
    equations.add(inputs(4, 4), SinkhornAttention(num_iters=3))
    solution = equations.solve(slice(0, SLICES), ridge=1e-6)
    assert torch.equal(solution.weight, torch.zeros_like(solution.weight))


def test_slices_are_unit_and_follow_the_seed() -> None:
    theta = random_slices(3, 5, 7, seed=4)
    torch.testing.assert_close(theta.norm(dim=-1), torch.ones(3, 5))
    assert torch.equal(theta, random_slices(3, 5, 7, seed=4))
    assert not torch.equal(theta, random_slices(3, 5, 7, seed=5))


def test_batches_too_large_for_one_piece_add_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = random_slices(HEADS, SLICES, DIM, seed=0)
    data = inputs(6, 1, padded=True)
    whole, pieces = (NormalEquations(theta, ("adaptive", "logits")) for _ in "ab")
    whole.add(data, SinkhornAttention(num_iters=5))
    monkeypatch.setattr(ridge, "MOST_FEATURES", 2 * whole.gram.shape[1] * HEADS * TOKENS)
    pieces.add(data, SinkhornAttention(num_iters=5))
    for name in ("gram", "moment", "energy"):
        torch.testing.assert_close(
            getattr(pieces, name), getattr(whole, name), rtol=1e-12, atol=1e-12
        )


@pytest.mark.slow
def test_heads_with_hundreds_of_features_on_several_threads() -> None:
    """Where a batched LU decomposition of PyTorch has been seen never to end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        equations = NormalEquations(random_slices(6, 128, 64, seed=0))
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(*equations.moment.shape, 400, dtype=torch.float64, generator=generator)
        y = torch.randn(6, 400, dtype=torch.float64, generator=generator)
        equations.gram, equations.moment = x @ x.mT, (x @ y[..., None])[..., 0]
        equations.energy = y.square().sum(dim=1)
        solution = equations.solve(slice(None), ridge=1e-12)
    finally:
        torch.set_num_threads(threads)
    expected = np.stack([np.linalg.lstsq(a.T, b, rcond=None)[0] for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(solution.weight, expected, rtol=1e-6, atol=1e-9)
