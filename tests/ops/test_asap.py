"""ASAP attention: known maps are reproduced, and refinement is Sinkhorn's own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from asap_exp.ops import (
    asap_attention,
    closure_attention,
    predicted_dual,
    query_features,
    sinkhorn_attention,
    sinkhorn_duals,
    sliced_potentials,
)
from tests.ops import plain
from tests.ops.inputs import OPERATORS, assert_close64, centred, identity_values, make_inputs

SHAPES = [(6, 6), (5, 9), (9, 4)]
OPTIONS: dict[str, Any] = {"eps": 0.6, "scale": 0.9}


@pytest.mark.parametrize("refine", [0, 1, 4])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_a_dual_that_is_a_sum_of_features_is_reproduced(queries, keys, refine):
    inputs = identity_values(make_inputs(queries=queries, keys=keys))
    phi = plain.potentials(inputs.q, inputs.k, inputs.theta, **OPTIONS)
    features = plain.query_features(inputs.q)
    f = (inputs.weight[:, :, None] * phi).sum(2)
    f = f + (inputs.query_weight[:, :, None] * features).sum(2)
    S = plain.logits(inputs.q, inputs.k, **OPTIONS)
    arguments = (inputs.q, inputs.k, inputs.theta, inputs.weight, inputs.query_weight)
    assert_close64(predicted_dual(*arguments, **OPTIONS), f)
    A = OPERATORS["asap_attention"](inputs, refine=refine, **OPTIONS)[0]
    assert_close64(A, plain.sinkhorn_plan(S, refine + 1, row_dual=f))


@pytest.mark.parametrize("refine", [0, 1, 4])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_asap_is_the_closure_of_its_predicted_dual(queries, keys, refine):
    inputs = make_inputs(queries=queries, keys=keys)
    q, k, v = inputs.q, inputs.k, inputs.v
    fit = (inputs.theta, inputs.weight, inputs.query_weight)
    options = OPTIONS | {"refine": refine}
    expected = closure_attention(q, k, v, predicted_dual(q, k, *fit, **options), **OPTIONS)
    assert_close64(asap_attention(q, k, v, *fit, **options), expected)


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_refined_zero_dual_is_the_ready_dual_of_one_more_update(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    q, k = inputs.q, inputs.k
    f = predicted_dual(q, k, inputs.theta, torch.zeros_like(inputs.weight), refine=4, **OPTIONS)
    assert_close64(f, sinkhorn_duals(q, k, num_iters=5, **OPTIONS).ready)


@pytest.mark.parametrize("refine", [0, 1, 6])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_zero_weights_are_truncated_sinkhorn(queries, keys, refine):
    inputs = make_inputs(queries=queries, keys=keys)
    q, k, v = inputs.q, inputs.k, inputs.v
    zeros = torch.zeros_like(inputs.weight)
    out = asap_attention(q, k, v, inputs.theta, zeros, refine=refine, **OPTIONS)
    assert_close64(out, sinkhorn_attention(q, k, v, num_iters=refine + 1, **OPTIONS))


def test_refinement_converges_to_the_converged_teacher():
    inputs = make_inputs()
    out = OPERATORS["asap_attention"](inputs, refine=300)[0]
    assert_close64(out, sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=300))


def test_refine_defaults_to_zero():
    inputs = make_inputs()
    arguments = (inputs.q, inputs.k, inputs.v, inputs.theta, inputs.weight)
    assert torch.equal(asap_attention(*arguments), asap_attention(*arguments, refine=0))
    assert (asap_attention(*arguments) - asap_attention(*arguments, refine=1)).abs().max() > 1e-3
    of_dual = (inputs.q, inputs.k, inputs.theta, inputs.weight)
    assert torch.equal(predicted_dual(*of_dual), predicted_dual(*of_dual, refine=0))


def test_no_query_weight_is_a_zero_query_weight():
    inputs = make_inputs()
    arguments = (inputs.q, inputs.k, inputs.v, inputs.theta, inputs.weight)
    zeros = torch.zeros_like(inputs.query_weight)
    assert_close64(asap_attention(*arguments), asap_attention(*arguments, zeros))


def test_no_slices_and_no_query_features_is_one_update():
    inputs = make_inputs(slices=0)
    q, k, v = inputs.q, inputs.k, inputs.v
    out = asap_attention(q, k, v, inputs.theta, inputs.weight)
    assert_close64(out, sinkhorn_attention(q, k, v, num_iters=1))
    assert sliced_potentials(q, k, inputs.theta).shape == (2, 3, 0, 7)


def test_no_slices_leaves_the_query_features():
    inputs = make_inputs(slices=0)
    f = (inputs.query_weight[:, :, None] * plain.query_features(inputs.q)).sum(2)
    out = OPERATORS["asap_attention"](inputs, refine=0)[0]
    assert_close64(out, closure_attention(inputs.q, inputs.k, inputs.v, f))


def test_equal_keys_have_a_dual_that_one_slice_or_one_feature_predicts_exactly():
    inputs = make_inputs(heads=2, slices=1)
    q, key = inputs.q, torch.tensor([0.3, -1.2, 0.5, 2.0], dtype=torch.float64)
    k = key.expand_as(q)
    ready = centred(sinkhorn_duals(q, k, num_iters=3, **OPTIONS).ready)
    assert ready.abs().max() > 0.5
    # S_ij = s <q_i, key> / eps for every j: the dual is minus this, linear in the query.
    factor = OPTIONS["scale"] / OPTIONS["eps"]
    query_weight = torch.cat([-factor * key, torch.zeros(1, dtype=torch.float64)]).expand(2, 5)
    no_slices = (inputs.theta[:, :0], inputs.weight[:, :0])
    assert_close64(predicted_dual(q, k, *no_slices, query_weight, **OPTIONS), ready)
    # The slice along the key captures all that matters.
    theta = (key / key.norm()).expand(2, 1, 4)
    ones = torch.ones(2, 1, dtype=torch.float64)
    assert_close64(predicted_dual(q, k, theta, ones, **OPTIONS), ready)


def test_features_are_centred_and_in_the_order_of_the_weights():
    inputs = make_inputs()
    features = query_features(inputs.q)
    assert_close64(features, plain.query_features(inputs.q))
    assert_close64(features.mean(dim=-1), torch.zeros_like(features[..., 0]))


def test_every_head_has_its_own_map():
    inputs = make_inputs(heads=3)
    out = OPERATORS["asap_attention"](inputs)[0]
    for changed in ("theta", "weight", "query_weight"):
        other = getattr(inputs, changed).clone()
        other[1] = -1.5 * other[1].roll(1, dims=-1)
        difference = OPERATORS["asap_attention"](replace(inputs, **{changed: other}))[0] - out
        assert not difference[:, [0, 2]].any()
        assert (difference[:, 1].abs().amax(dim=(-1, -2)) > 1e-4).all()


def test_only_the_ratio_of_scale_and_eps_matters():
    inputs = make_inputs()
    asap = OPERATORS["asap_attention"]
    out = asap(inputs, scale=0.3, eps=0.7)[0]
    assert_close64(asap(inputs, scale=0.6, eps=1.4)[0], out)
    assert (asap(inputs, scale=0.3, eps=1.4)[0] - out).abs().max() > 1e-3
