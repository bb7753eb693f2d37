"""Adaptive features: their definition and their invariances."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from asap_exp.ops import adaptive_features, predicted_dual
from tests.ops import plain
from tests.ops.inputs import OPERATORS, assert_close64, make_inputs

OPTIONS: dict[str, Any] = {"eps": 0.6, "scale": 0.9}


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9), (9, 4)])
def test_definition(queries, keys):
    x = make_inputs(queries=queries, keys=keys)
    expected = plain.adaptive_features(x.q, x.k, x.theta, **OPTIONS)
    assert_close64(adaptive_features(x.q, x.k, x.theta, **OPTIONS), expected)


def test_the_dual_has_their_weighted_sum_beside_the_others():
    x = make_inputs()
    features = plain.adaptive_features(x.q, x.k, x.theta, **OPTIONS)
    more = torch.einsum("hpl,bhpln->bhn", x.adaptive_weight, features)
    arguments = (x.q, x.k, x.theta, x.weight, x.query_weight)
    f_hat = predicted_dual(*arguments, adaptive_weight=x.adaptive_weight, **OPTIONS)
    assert_close64(f_hat, predicted_dual(*arguments, **OPTIONS) + more)


def test_zero_weights_add_nothing():
    x = make_inputs()
    x = replace(x, adaptive_weight=torch.zeros_like(x.adaptive_weight))
    (with_them,), (without,) = (
        OPERATORS[name](x) for name in ("adaptive_asap_attention", "asap_attention")
    )
    assert torch.equal(with_them, without)


def test_the_first_knows_no_scale():
    x = make_inputs()
    features = adaptive_features(x.q, x.k, x.theta)
    larger = adaptive_features(3 * x.q, 5 * x.k, 2 * x.theta)
    assert_close64(larger[:, :, 0], features[:, :, 0])
    assert_close64(larger[:, :, 1:3], 15 * features[:, :, 1:3])
    assert_close64(larger[:, :, 3:], 9 * features[:, :, 3:])


def test_tokens_that_are_all_alike_have_none():
    x = make_inputs()
    q, k = (tensor[:, :, :1].expand_as(tensor) for tensor in (x.q, x.k))
    assert adaptive_features(q, k, x.theta).abs().max() < 1e-12


def test_moving_all_keys_moves_only_what_is_pooled_of_them():
    x = make_inputs()
    far = x.theta.new_full((4,), 30.0)
    features = adaptive_features(x.q, x.k, x.theta)
    moved = adaptive_features(x.q, x.k + far, x.theta)
    along = x.q @ far
    expected = features[:, :, 1:3] + (along - along.mean(-1, keepdim=True))[:, :, None, None]
    torch.testing.assert_close(moved[:, :, 1:3], expected, rtol=1e-7, atol=1e-7)
    assert_close64(moved[:, :, 3:], features[:, :, 3:])
