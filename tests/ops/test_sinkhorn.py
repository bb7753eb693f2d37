"""Sinkhorn attention against POT, and the properties of its plan."""

import math

import ot
import pytest
import torch
from torch import Tensor

from asap_exp.ops import attention_plan, sinkhorn_attention, sinkhorn_duals
from tests.ops import plain
from tests.ops.inputs import assert_close64, identity_values, make_inputs

SHAPES = [(6, 6), (5, 9), (9, 4)]


def pot_sinkhorn(S: Tensor, num_iters: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return POT's plan, query dual and key dual of one head for the cost -eps S.

    POT spreads one unit of mass over the queries, while each of our rows sums to 1: its plan is
    A / n, and its key dual is g - log n. Its query dual is f.
    """
    n, m = S.shape
    plan, log = ot.sinkhorn(
        torch.full((n,), 1 / n, dtype=S.dtype).numpy(),
        torch.full((m,), 1 / m, dtype=S.dtype).numpy(),
        (-eps * S).numpy(),
        eps,
        method="sinkhorn_log",
        numItermax=num_iters,
        stopThr=0,
        warn=False,
        log=True,
    )
    u, v = torch.from_numpy(log["log_u"]), torch.from_numpy(log["log_v"])
    return torch.from_numpy(plan), u, v


@pytest.mark.parametrize("eps", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("num_iters", [1, 2, 7, 50])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_plan_and_duals_are_those_of_pot(queries, keys, num_iters, eps):
    inputs = make_inputs(queries=queries, keys=keys, batch=1, heads=2)
    q, k = inputs.q, inputs.k
    options = {"eps": eps, "scale": 0.8}
    duals = sinkhorn_duals(q, k, num_iters=num_iters, **options)
    A = attention_plan(q, k, duals.ready, **options)
    S = plain.logits(q, k, **options)
    for h in range(2):
        plan, u, v = pot_sinkhorn(S[0, h], num_iters, eps)
        assert_close64(A[0, h], queries * plan)
        assert_close64(duals.row[0, h], u)
        assert_close64(duals.col[0, h], v + math.log(queries))
        if num_iters > 1:
            _, u_before, _ = pot_sinkhorn(S[0, h], num_iters - 1, eps)
            assert_close64(duals.ready[0, h], u_before)


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_attention_averages_the_values_with_pot_s_plan(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    out = sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=5)
    S = plain.logits(inputs.q, inputs.k, eps=1.0, scale=inputs.q.shape[-1] ** -0.5)
    for b in range(2):
        for h in range(3):
            plan, _, _ = pot_sinkhorn(S[b, h], 5, 1.0)
            assert_close64(out[b, h], queries * plan @ inputs.v[b, h])


def test_ready_dual_of_one_update_is_zero():
    inputs = make_inputs()
    assert not sinkhorn_duals(inputs.q, inputs.k, num_iters=1).ready.any()


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_one_update_is_column_normalisation_then_row_softmax(queries, keys):
    inputs = identity_values(make_inputs(queries=queries, keys=keys))
    A = sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=1)
    S = plain.logits(inputs.q, inputs.k, eps=1.0, scale=inputs.q.shape[-1] ** -0.5)
    columns_normalised = S.softmax(dim=-2)
    assert_close64(A, columns_normalised / columns_normalised.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_row_softmax_attention_is_something_else(queries, keys):
    inputs = identity_values(make_inputs(queries=queries, keys=keys))
    A = sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=1)
    S = plain.logits(inputs.q, inputs.k, eps=1.0, scale=inputs.q.shape[-1] ** -0.5)
    assert (A - S.softmax(dim=-1)).abs().max() > 0.05


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_rows_sum_to_one_and_columns_converge_to_n_over_m(queries, keys):
    inputs = identity_values(make_inputs(queries=queries, keys=keys))
    column_errors = []
    for num_iters in (1, 3, 10, 300):
        A = sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=num_iters)
        torch.testing.assert_close(A.sum(-1), torch.ones_like(A[..., 0]), rtol=0, atol=1e-14)
        column_errors.append((A.sum(-2) * keys / queries - 1).abs().mean().item())
    # The order of magnitude shows that the first plan is *not* yet doubly stochastic.
    assert column_errors[0] > 1e-2
    assert column_errors == sorted(column_errors, reverse=True)
    assert column_errors[-1] < 1e-12


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_many_updates_reach_the_fixed_point(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    late = sinkhorn_duals(inputs.q, inputs.k, num_iters=400)
    assert_close64(late.ready, late.row)
    # At the fixed point the squared Euclidean cost |q - k|^2 / 2 has the same plan.
    scale = inputs.q.shape[-1] ** -0.5
    cost = torch.cdist(inputs.q, inputs.k).square() / 2
    A = attention_plan(inputs.q, inputs.k, late.ready)
    assert_close64(A, plain.sinkhorn_plan(-scale * cost, 400))


def test_only_the_ratio_of_scale_and_eps_matters():
    inputs = make_inputs()
    q, k, v = inputs.q, inputs.k, inputs.v
    out = sinkhorn_attention(q, k, v, scale=0.3, eps=0.7)
    assert_close64(sinkhorn_attention(q, k, v, scale=0.6, eps=1.4), out)
    assert_close64(sinkhorn_attention(0.3 * q, k, v, scale=1.0, eps=0.7), out)
    assert (sinkhorn_attention(q, k, v, scale=0.3, eps=1.4) - out).abs().max() > 1e-3


def test_scale_defaults_to_the_inverse_root_of_the_head_dim():
    inputs = make_inputs(head_dim=9)
    q, k, v = inputs.q, inputs.k, inputs.v
    assert_close64(sinkhorn_attention(q, k, v), sinkhorn_attention(q, k, v, scale=1 / 3))


def test_more_updates_are_another_layer():
    inputs = make_inputs()
    q, k, v = inputs.q, inputs.k, inputs.v
    default = sinkhorn_attention(q, k, v)
    assert torch.equal(default, sinkhorn_attention(q, k, v, num_iters=20))
    assert (default - sinkhorn_attention(q, k, v, num_iters=2)).abs().max() > 1e-4
