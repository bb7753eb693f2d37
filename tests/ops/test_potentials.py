"""Sliced potentials are exact Kantorovich potentials, by POT's solvers in one dimension."""

from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from asap_exp.ops import sinkhorn_duals, sliced_potentials
from tests.ops import plain
from tests.ops.inputs import assert_close64, centred, make_inputs

SHAPES = [(1, 1), (8, 8), (5, 9), (9, 4), (6, 4), (1, 5), (5, 1), (12, 6)]
OPTIONS: dict[str, Any] = {"eps": 0.6, "scale": 0.9}
FACTOR = OPTIONS["scale"] / OPTIONS["eps"]


def slices_of(inputs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (x, y, phi) for every slice of every head of every sample."""
    phi = sliced_potentials(inputs.q, inputs.k, inputs.theta, **OPTIONS).flatten(0, 2)
    x = torch.einsum("bhnd,hld->bhln", inputs.q, inputs.theta).flatten(0, 2)
    y = torch.einsum("bhmd,hld->bhlm", inputs.k, inputs.theta).flatten(0, 2)
    return list(zip(x, y, phi, strict=True))


def cost(x: Tensor, y: Tensor) -> Tensor:
    return -FACTOR * x[:, None] * y[None, :]


def primal_cost(x: Tensor, y: Tensor) -> float:
    """Return POT's minimal mean cost, using -x y = (x - y)^2 / 2 - x^2 / 2 - y^2 / 2."""
    squared = ot.wasserstein_1d(x.numpy(), y.numpy(), p=2)
    return FACTOR * (squared - x.square().mean().item() - y.square().mean().item()) / 2


def key_potential(x: Tensor, y: Tensor, phi: Tensor) -> Tensor:
    """Return the largest psi with phi + psi <= cost."""
    return (cost(x, y) - phi[:, None]).amin(dim=0)


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_dual_value_is_the_primal_cost(queries, keys):
    for x, y, phi in slices_of(make_inputs(queries=queries, keys=keys)):
        dual_value = phi.mean() + key_potential(x, y, phi).mean()
        assert dual_value.item() == pytest.approx(primal_cost(x, y), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_pairs_are_tight_and_nothing_exceeds_the_cost(tokens):
    for x, y, phi in slices_of(make_inputs(queries=tokens)):
        x_order, y_order = x.argsort(), y.argsort()
        C = cost(x[x_order], y[y_order])
        # psi is tight on the sorted pairs by construction; it is feasible for all other pairs only
        # if phi is a potential.
        psi = C.diagonal() - phi[x_order]
        excess = phi[x_order][:, None] + psi[None, :] - C
        assert excess.max() < 1e-12


@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 4), (6, 4), (7, 7)])
def test_potential_is_tight_on_the_support_of_pot_s_plan(queries, keys):
    for x, y, phi in slices_of(make_inputs(queries=queries, keys=keys)):
        support = torch.from_numpy(ot.emd_1d(x.numpy(), y.numpy())) > 1e-12
        slack = cost(x, y) - phi[:, None] - key_potential(x, y, phi)[None, :]
        assert slack.min() > -1e-12
        assert slack[support].max() < 1e-12


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_potential_takes_the_midpoint_slope(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    expected = plain.potentials(inputs.q, inputs.k, inputs.theta, **OPTIONS)
    assert_close64(sliced_potentials(inputs.q, inputs.k, inputs.theta, **OPTIONS), expected)


def test_potential_is_centred():
    phi = sliced_potentials(*(getattr(make_inputs(), name) for name in ("q", "k", "theta")))
    assert phi.abs().max() > 0.1
    assert_close64(phi.mean(dim=-1), torch.zeros_like(phi[..., 0]))


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (3, 5), (4, 6)])
def test_cold_entropic_dual_in_one_dimension_tends_to_the_potential(queries, keys):
    # This fixes sign, unit and centring: on one slice, the dual of converged, cold Sinkhorn is phi.
    q = torch.linspace(-1, 1, queries, dtype=torch.float64) ** 3 + 0.4
    k = torch.linspace(-1, 1, keys, dtype=torch.float64) * 1.3 - 0.2
    q, k = q.flip(0).view(1, 1, -1, 1), k.view(1, 1, -1, 1)
    theta = torch.ones(1, 1, 1, dtype=torch.float64)
    f = centred(sinkhorn_duals(q, k, num_iters=1000, eps=0.1, scale=1.0).row)
    phi = sliced_potentials(q, k, theta, eps=0.1, scale=1.0)[:, :, 0]
    # In logit units, phi grows as 1 / eps; entropy moves the dual by the log of a small count.
    assert phi.abs().max() > 4
    assert (f - phi).abs().max() < 0.5


def test_equal_queries_have_equal_potentials():
    inputs = make_inputs(queries=6)
    inputs.q[:, :, 4] = inputs.q[:, :, 1]
    inputs.q[:, :, 5] = inputs.q[:, :, 1]
    phi = sliced_potentials(inputs.q, inputs.k, inputs.theta)
    assert torch.equal(phi[..., 4], phi[..., 1])
    assert torch.equal(phi[..., 5], phi[..., 1])
    assert phi[..., 0].ne(phi[..., 1]).all()


def test_ties_keep_the_potential_exact():
    inputs = make_inputs(queries=8, keys=6)
    # Integers projected on the axes tie often, among the queries and among the keys.
    inputs.q.round_()
    inputs.k.round_()
    inputs.theta[:] = torch.eye(4, dtype=torch.float64)[:3]
    ties = 0
    for x, y, phi in slices_of(inputs):
        ties += len(x) - len(x.unique()) + len(y) - len(y.unique())
        dual_value = phi.mean() + key_potential(x, y, phi).mean()
        assert dual_value.item() == pytest.approx(primal_cost(x, y), rel=1e-10, abs=1e-12)
    assert ties > 20


@pytest.mark.parametrize("equal", ["q", "k"])
def test_all_tokens_equal(equal):
    inputs = make_inputs(queries=5, batch=1)
    getattr(inputs, equal)[:] = getattr(inputs, equal)[:, :, :1].clone()
    phi = sliced_potentials(inputs.q, inputs.k, inputs.theta, **OPTIONS)
    x = torch.einsum("bhnd,hld->bhln", inputs.q, inputs.theta)
    y = torch.einsum("bhnd,hld->bhln", inputs.k, inputs.theta)
    # Equal queries have a constant potential. For equal keys, the potential is linear in x.
    expected = torch.zeros_like(phi) if equal == "q" else -FACTOR * y[..., :1] * centred(x)
    assert_close64(phi, expected)


def test_one_token_has_potential_zero():
    inputs = make_inputs(queries=1)
    assert not sliced_potentials(inputs.q, inputs.k, inputs.theta).any()


def test_order_of_queries_is_followed_and_order_of_keys_ignored():
    inputs = make_inputs(queries=7, keys=5)
    phi = sliced_potentials(inputs.q, inputs.k, inputs.theta)
    order = torch.from_numpy(np.random.default_rng(0).permutation(7))
    assert_close64(
        sliced_potentials(inputs.q[:, :, order], inputs.k, inputs.theta), phi[..., order]
    )
    assert_close64(sliced_potentials(inputs.q, inputs.k.flip(2), inputs.theta), phi)


def test_theta_is_used_as_given():
    inputs = make_inputs()
    phi = sliced_potentials(inputs.q, inputs.k, inputs.theta)
    # Both projections grow with theta, and a direction and its opposite are one slice.
    assert_close64(sliced_potentials(inputs.q, inputs.k, 3 * inputs.theta), 9 * phi)
    assert_close64(sliced_potentials(inputs.q, inputs.k, -inputs.theta), phi)


def test_potentials_are_in_logit_units():
    inputs = make_inputs()
    arguments = (inputs.q, inputs.k, inputs.theta)
    phi = sliced_potentials(*arguments)
    assert_close64(sliced_potentials(*arguments, eps=0.25), 4 * phi)
    assert_close64(sliced_potentials(*arguments, scale=3 * 0.5), 3 * phi)  # 4 ** -0.5 = 0.5
    assert_close64(sliced_potentials(*arguments, scale=1.5, eps=3.0), phi)
