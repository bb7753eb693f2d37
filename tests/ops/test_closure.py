"""The closure of a row dual, and the dual that is ready for it."""

from typing import Any

import pytest
import torch

from asap_exp.ops import (
    attention_plan,
    closure_attention,
    sinkhorn_attention,
    sinkhorn_duals,
)
from tests.ops import plain
from tests.ops.inputs import assert_close64, identity_values, make_inputs

SHAPES = [(6, 6), (5, 9), (9, 4)]
OPTIONS: dict[str, Any] = {"eps": 0.6, "scale": 0.9}

pytestmark = pytest.mark.parametrize(("queries", "keys"), SHAPES)


@pytest.fixture
def inputs(queries, keys):
    return make_inputs(queries=queries, keys=keys)


@pytest.mark.parametrize("num_iters", [1, 2, 5, 20])
def test_closure_of_the_ready_dual_is_the_teacher(inputs, num_iters):
    q, k, v = inputs.q, inputs.k, inputs.v
    teacher = sinkhorn_attention(q, k, v, num_iters=num_iters, **OPTIONS)
    duals = sinkhorn_duals(q, k, num_iters=num_iters, **OPTIONS)
    assert_close64(closure_attention(q, k, v, duals.ready, **OPTIONS), teacher)


def test_closure_of_the_last_dual_is_one_update_further(inputs):
    q, k, v = inputs.q, inputs.k, inputs.v
    duals = sinkhorn_duals(q, k, num_iters=3, **OPTIONS)
    of_last = closure_attention(q, k, v, duals.row, **OPTIONS)
    assert_close64(of_last, sinkhorn_attention(q, k, v, num_iters=4, **OPTIONS))
    teacher = sinkhorn_attention(q, k, v, num_iters=3, **OPTIONS)
    assert (of_last - teacher).abs().max() > 1e-5


@pytest.mark.parametrize("num_iters", [1, 4])
def test_plan_is_the_exponential_of_logits_and_duals(inputs, num_iters):
    duals = sinkhorn_duals(inputs.q, inputs.k, num_iters=num_iters, **OPTIONS)
    S = plain.logits(inputs.q, inputs.k, **OPTIONS)
    A = (S + duals.row[..., :, None] + duals.col[..., None, :]).exp()
    assert_close64(attention_plan(inputs.q, inputs.k, duals.ready, **OPTIONS), A)


def test_closure_of_any_dual_is_one_round_of_scaling(inputs):
    S = plain.logits(inputs.q, inputs.k, **OPTIONS)
    A = plain.sinkhorn_plan(S, 1, row_dual=inputs.row_dual)
    assert_close64(attention_plan(inputs.q, inputs.k, inputs.row_dual, **OPTIONS), A)
    out = closure_attention(inputs.q, inputs.k, inputs.v, inputs.row_dual, **OPTIONS)
    assert_close64(out, A @ inputs.v)


def test_closure_ignores_a_constant(inputs):
    constant = torch.tensor([-300.0, 0.5, 40.0], dtype=torch.float64)[:, None]
    shifted = inputs.row_dual + constant
    assert_close64(
        attention_plan(inputs.q, inputs.k, shifted),
        attention_plan(inputs.q, inputs.k, inputs.row_dual),
    )


def test_closure_does_not_ignore_the_dual(inputs):
    zero = torch.zeros_like(inputs.row_dual)
    of_zero = attention_plan(inputs.q, inputs.k, zero)
    assert (attention_plan(inputs.q, inputs.k, inputs.row_dual) - of_zero).abs().max() > 0.05


def test_closure_of_zero_is_the_teacher_of_one_update(inputs):
    zero = torch.zeros_like(inputs.row_dual)
    out = closure_attention(inputs.q, inputs.k, inputs.v, zero)
    assert_close64(out, sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=1))


def test_closure_attention_uses_the_plan_of_attention_plan(inputs):
    inputs = identity_values(inputs)
    A = closure_attention(inputs.q, inputs.k, inputs.v, inputs.row_dual)
    assert_close64(A, attention_plan(inputs.q, inputs.k, inputs.row_dual))
    torch.testing.assert_close(A.sum(-1), torch.ones_like(A[..., 0]), rtol=0, atol=1e-14)


def test_closure_follows_a_permutation_of_queries_and_of_keys(inputs, queries, keys):
    queries_order = torch.randperm(queries, generator=torch.Generator().manual_seed(2))
    keys_order = torch.randperm(keys, generator=torch.Generator().manual_seed(3))
    A = attention_plan(inputs.q, inputs.k, inputs.row_dual)
    permuted = attention_plan(
        inputs.q[:, :, queries_order],
        inputs.k[:, :, keys_order],
        inputs.row_dual[:, :, queries_order],
    )
    assert_close64(permuted, A[:, :, queries_order][:, :, :, keys_order])
