"""Logit features: their definition, their invariances, and their use with relaxed updates."""

from typing import Any

import pytest
import torch

from asap_exp.ops import attention_plan, logit_features, predicted_dual, sinkhorn_duals
from tests.ops import plain
from tests.ops.inputs import assert_close64, make_inputs

OPTIONS: dict[str, Any] = {"eps": 0.6, "scale": -0.9}


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9), (9, 4)])
def test_definition(queries, keys):
    x = make_inputs(queries=queries, keys=keys)
    expected = plain.logit_features(x.q, x.k, **OPTIONS)
    assert_close64(logit_features(x.q, x.k, **OPTIONS), expected)


def test_the_dual_has_their_weighted_sum_beside_the_others():
    x = make_inputs()
    more = torch.einsum("hp,bhpn->bhn", x.logit_weight, plain.logit_features(x.q, x.k, **OPTIONS))
    arguments = (x.q, x.k, x.theta, x.weight)
    f_hat = predicted_dual(*arguments, logit_weight=x.logit_weight, **OPTIONS)
    assert_close64(f_hat, predicted_dual(*arguments, **OPTIONS) + more)


def test_they_know_neither_the_size_of_a_key_nor_where_the_queries_lie():
    x = make_inputs()
    sizes = torch.linspace(0.5, 4.0, x.k.shape[2], dtype=torch.float64)[:, None]
    far = x.q.new_full((4,), 30.0)
    moved = logit_features(x.q + far, sizes * x.k)
    torch.testing.assert_close(moved, logit_features(x.q, x.k), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queries_that_are_all_alike_have_none(dtype):
    x = make_inputs(dtype=dtype, queries=13)
    q = x.q[:, :, :1].expand_as(x.q)
    assert not logit_features(q, x.k).any()


def test_a_full_relaxed_update_is_a_plain_one_and_none_leaves_the_dual():
    x = make_inputs()
    arguments = (x.q, x.k, x.theta, x.weight, x.query_weight)
    start, plain_update = (predicted_dual(*arguments, refine=refine) for refine in (0, 1))
    for w in (0.0, 1.0, 1.5):
        relaxation = torch.full_like(x.relaxation, w)
        relaxed = predicted_dual(*arguments, refine=1, relaxation=relaxation)
        assert_close64(relaxed, start + w * (plain_update - start))


@pytest.mark.parametrize("w", [0.5, 1.5])
def test_relaxed_updates_reach_the_same_plan(w):
    x = make_inputs()
    arguments = (x.q, x.k, x.theta, torch.zeros_like(x.weight))
    relaxation = torch.full_like(x.relaxation, w)
    row_dual = predicted_dual(*arguments, refine=300, relaxation=relaxation)
    expected = sinkhorn_duals(x.q, x.k, num_iters=300).ready
    plans = [attention_plan(x.q, x.k, dual) for dual in (row_dual, expected)]
    assert_close64(*plans)
