"""Maps of one pass: they predict the dual of the keys, a bias with which softmax is the plan."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import CoarseSettings, SlicedMap, map_attention, map_dual
from asap_exp.ops.features import FEATURES
from tests.ops.inputs import (
    OPERATORS,
    Inputs,
    assert_close64,
    centred,
    identity_values,
    make_inputs,
)

ONE_PASS = OPERATORS["one_pass_asap_attention"]
SHAPES = [(6, 6), (5, 9), (9, 4)]
every_shape = pytest.mark.parametrize(("queries", "keys"), SHAPES)


def coarse_map(inputs: Inputs, settings: CoarseSettings) -> SlicedMap:
    """Return the map of one pass whose dual is the coarse one: no slices, weight 1."""
    weight = torch.ones(len(inputs.theta), 1, dtype=inputs.q.dtype)
    fit = inputs.theta[:, :0], inputs.weight[:, :0]
    return SlicedMap(*fit, coarse_weight=weight, coarse=settings, one_pass=True)


def map_of(inputs: Inputs, **further: Any) -> SlicedMap:
    """Return the map that `one_pass_asap_attention` is given, with further fields."""
    names = ONE_PASS.reads[3:]
    return SlicedMap.of({name: getattr(inputs, name) for name in names} | further)


@every_shape
def test_dual_is_that_of_the_queries_with_both_sides_in_each_others_place(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    options = {"eps": 0.7, "scale": 0.9}
    (dual,) = OPERATORS["one_pass_dual"](inputs, **options)
    assert_close64(dual, map_dual(inputs.k, inputs.q, map_of(inputs), **options))
    assert_close64(dual, centred(dual))


@every_shape
def test_plan_is_softmax_of_the_logits_and_the_dual(queries, keys):
    inputs = identity_values(make_inputs(queries=queries, keys=keys))
    (dual,) = OPERATORS["one_pass_dual"](inputs, eps=0.7, scale=0.9)
    S = inputs.q @ inputs.k.mT * (0.9 / 0.7)
    (plan,) = ONE_PASS(inputs, eps=0.7, scale=0.9)
    assert_close64(plan, torch.softmax(S + dual[..., None, :], dim=-1))
    assert_close64(plan, ops.one_pass_plan(inputs.q, inputs.k, dual, eps=0.7, scale=0.9))


@every_shape
def test_column_dual_of_sinkhorn_gives_the_plan_of_sinkhorn(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    col = ops.sinkhorn_duals(inputs.q, inputs.k, num_iters=4).col
    plan = ops.one_pass_plan(inputs.q, inputs.k, col)
    assert_close64(plan @ inputs.v, ops.sinkhorn_attention(*inputs_of_call(inputs), num_iters=4))


def inputs_of_call(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return inputs.q, inputs.k, inputs.v


@every_shape
@pytest.mark.parametrize("tokens", [4, 9])
def test_coarse_feature_alone_is_coarse_attention_in_one_pass(queries, keys, tokens):
    inputs = make_inputs(queries=queries, keys=keys)
    settings = CoarseSettings(tokens, "farthest", "voronoi", num_iters=3)
    found = map_attention(*inputs_of_call(inputs), coarse_map(inputs, settings))
    subset, key_subset = settings.subsets(inputs.q, inputs.k, None)
    chosen = {"subset": subset, "key_subset": key_subset, "num_iters": 3, "one_pass": True}
    assert_close64(found, ops.coarse_attention(*inputs_of_call(inputs), **chosen))
    if tokens == 9:  # all of them: Sinkhorn's own plan
        assert_close64(found, ops.sinkhorn_attention(*inputs_of_call(inputs), num_iters=3))


def test_rows_sum_to_one_and_columns_as_closely_as_the_dual_is_predicted():
    inputs = identity_values(make_inputs(queries=40, head_dim=8))
    exact = CoarseSettings(40, num_iters=200)
    few = CoarseSettings(20, "farthest", "voronoi", num_iters=200)
    errors = []
    for settings in (exact, few, CoarseSettings(2, num_iters=200)):
        plan = map_attention(*inputs_of_call(inputs), coarse_map(inputs, settings))
        assert_close64(plan.sum(dim=-1), torch.ones(plan.shape[:3], dtype=plan.dtype))
        errors.append((plan.sum(dim=-2) - 1).abs().mean())
    assert errors[0] < 1e-8 < errors[1] < errors[2]


def test_features_for_a_fit_are_those_of_the_map():
    """The dual of a map is the weighted sum of what a regression is given."""
    inputs, settings = make_inputs(queries=9), CoarseSettings(4, num_iters=3)
    theta = inputs.theta
    phi = ops.sliced_potentials(inputs.k, inputs.q, theta)
    names = list(FEATURES)
    found = ops.map_features(
        inputs.q, inputs.k, theta, names, phi=phi, coarse=settings, of_keys=True
    )
    heads, slices, dim = theta.shape
    tensors = {"theta": theta, "weight": inputs.weight}
    expected = torch.einsum("hl,bhln->bhn", inputs.weight, phi)
    for seed, (name, x) in enumerate(zip(names, found, strict=True)):
        feature = FEATURES[name]
        generator = torch.Generator().manual_seed(seed)
        shape = feature.shape(heads, slices, dim)
        weight = torch.randn(shape, generator=generator, dtype=theta.dtype)
        tensors[feature.weight] = weight
        expected = expected + torch.einsum("hp,bhpn->bhn", weight.flatten(1), x)
    map = SlicedMap.of(tensors | {"coarse": settings, "one_pass": True})
    assert_close64(map_dual(inputs.q, inputs.k, map), centred(expected))


def test_it_is_kept_by_what_changes_a_map():
    map = coarse_map(make_inputs(), CoarseSettings(4))
    assert map.map(torch.clone).one_pass
    assert map.heads(slice(1)).one_pass
    assert SlicedMap.of(map._asdict()).one_pass
    assert not SlicedMap.of({"theta": map.theta, "weight": map.weight}).one_pass


def test_updates_and_other_values_are_refused():
    inputs = make_inputs()
    map = coarse_map(inputs, CoarseSettings(4))
    words = "refine=2 updates the dual of the queries, and a map of one pass predicts that of the"
    with pytest.raises(ValueError, match=re.escape(words)):
        map_attention(*inputs_of_call(inputs), map, refine=2)
    with pytest.raises(ValueError, match=re.escape(words)):
        map_dual(inputs.q, inputs.k, map, refine=2)
    with pytest.raises(TypeError, match="one_pass must be"):
        map_dual(inputs.q, inputs.k, SlicedMap.of({**map._asdict(), "one_pass": "yes"}))


def test_plan_takes_a_number_for_each_key():
    inputs = make_inputs(queries=5, keys=9)
    words = r"col_dual must have k's batch, heads and tokens \(2, 3, 9\), got \(2, 3, 5\)"
    with pytest.raises(ValueError, match=words):
        ops.one_pass_plan(inputs.q, inputs.k, inputs.row_dual)


def test_plan_of_padded_samples_is_that_of_cut_ones():
    inputs = make_inputs(queries=7)
    mask = torch.arange(7) >= torch.tensor([[7], [4]])
    dual = inputs.row_dual
    plan = ops.one_pass_plan(inputs.q, inputs.k, dual, key_padding_mask=mask)
    q, k, g = (x[1:, :, :4] for x in (inputs.q, inputs.k, dual))
    assert_close64(plan[1:, :, :4, :4], ops.one_pass_plan(q, k, g))
    assert not plan[1, :, 4:].any()
    assert not plan[1, :, :, 4:].any()


def test_far_keys_get_less_of_every_row():
    """A dual of the keys is what softmax lacks: the columns of an outlier sum to n/m with it."""
    inputs = make_inputs(queries=12, head_dim=8)
    k = inputs.k.clone()
    k[:, :, 0] *= 6
    inputs = replace(inputs, k=k)
    col = ops.sinkhorn_duals(inputs.q, inputs.k, num_iters=500).col
    with_dual = ops.one_pass_plan(inputs.q, inputs.k, col).sum(dim=-2)
    without = ops.one_pass_plan(inputs.q, inputs.k, torch.zeros_like(col)).sum(dim=-2)
    assert (with_dual - 1).abs().max() < 1e-3
    assert without[:, :, 0].max() > 3
