"""Gradients, compared with finite differences and with gradients of plain unrolled scaling."""

from dataclasses import replace

import pytest
import torch

from asap_exp import ops
from tests.ops import plain
from tests.ops.inputs import (
    OPERATORS,
    Inputs,
    assert_close64,
    make_cotangents,
    make_inputs,
    relative_rms,
)

OPTIONS = {"eps": 0.7, "scale": 0.9}
# One token padded between two valid ones, and a sample whose last token is padded.
MASK = torch.tensor([[False, True, False], [False, False, True]])

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def gradcheck(operator, inputs: Inputs, **options) -> bool:
    def function(*sources):
        values = vars(inputs) | dict(zip(operator.reads, sources, strict=True))
        return operator(Inputs(**values), **options)

    sources = [getattr(inputs, name).requires_grad_() for name in operator.reads]
    return torch.autograd.gradcheck(function, sources, atol=1e-7, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [3, 4])
@every_operator
def test_gradients_are_those_of_finite_differences(operator, keys):
    inputs = make_inputs(batch=1, heads=2, queries=3, keys=keys, head_dim=2, value_dim=2, slices=2)
    options = OPTIONS if "k" in operator.reads else {}
    assert gradcheck(operator, inputs, **options)


@pytest.mark.slow
@every_operator
def test_gradients_with_padding_are_those_of_finite_differences(operator):
    inputs = make_inputs(batch=2, heads=2, queries=3, head_dim=2, value_dim=2, slices=2)
    options = OPTIONS if "k" in operator.reads else {}
    assert gradcheck(operator, inputs, key_padding_mask=MASK, **options)


def gradients(function, sources, cotangent):
    leaves = [x.detach().clone().requires_grad_() for x in sources]
    return torch.autograd.grad(function(*leaves), leaves, cotangent)


@pytest.mark.parametrize("num_iters", [1, 2, 20])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9)])
def test_sinkhorn_gradient_is_that_of_the_unrolled_updates(queries, keys, num_iters):
    inputs = make_inputs(queries=queries, keys=keys)
    operator = OPERATORS["sinkhorn_attention"]
    cotangents = make_cotangents(operator(inputs))

    def unrolled(q, k, v):
        return plain.sinkhorn_plan(plain.logits(q, k, **OPTIONS), num_iters) @ v

    expected = gradients(unrolled, (inputs.q, inputs.k, inputs.v), *cotangents)
    _, found = operator.run(inputs, cotangents, num_iters=num_iters, **OPTIONS)
    for name, gradient in zip(operator.reads, expected, strict=True):
        assert_close64(found[name], gradient)


@pytest.mark.parametrize("last", [1, 3, 7])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9)])
def test_gradient_of_the_last_updates_takes_their_start_as_given(queries, keys, last):
    inputs = make_inputs(queries=queries, keys=keys)
    operator = OPERATORS["sinkhorn_attention"]
    whole = operator(inputs, num_iters=7, **OPTIONS)
    cotangents = make_cotangents(whole)
    start = None
    if last < 7:
        start = ops.sinkhorn_duals(inputs.q, inputs.k, num_iters=7 - last, **OPTIONS).row

    def unrolled(q, k, v):
        return plain.sinkhorn_plan(plain.logits(q, k, **OPTIONS), last, row_dual=start) @ v

    expected = gradients(unrolled, (inputs.q, inputs.k, inputs.v), *cotangents)
    (out,), found = operator.run(inputs, cotangents, num_iters=7, gradient_updates=last, **OPTIONS)
    assert_close64(out, whole[0])
    for name, gradient in zip(operator.reads, expected, strict=True):
        assert_close64(found[name], gradient)


def test_gradient_of_the_last_updates_nears_that_of_all():
    inputs = make_inputs()
    operator = OPERATORS["sinkhorn_attention"]
    cotangents = make_cotangents(operator(inputs))
    exact = operator.run(inputs, cotangents, num_iters=20)[1]["q"]
    errors = [
        relative_rms(
            operator.run(inputs, cotangents, num_iters=20, gradient_updates=last)[1]["q"], exact
        )
        for last in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_gradient_of_few_updates_is_not_that_of_the_fixed_point():
    inputs = make_inputs()
    cotangents = make_cotangents(OPERATORS["sinkhorn_attention"](inputs))
    few = OPERATORS["sinkhorn_attention"].run(inputs, cotangents, num_iters=2)[1]
    many = OPERATORS["sinkhorn_attention"].run(inputs, cotangents, num_iters=200)[1]
    assert (few["q"] - many["q"]).abs().max() > 1e-3


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9)])
def test_asap_gradient_reaches_through_closure_and_refinement(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    operator = OPERATORS["asap_attention"]
    cotangents = make_cotangents(operator(inputs))

    def unrolled(q, k, v, theta, weight, query_weight):
        # Every potential is linear in x once the order of the tokens is known; `plain` has no
        # gradient there, so the potentials come from the operator that gradcheck vouches for.
        phi = OPERATORS["sliced_potentials"].function(q, k, theta, **OPTIONS)
        f = torch.einsum("hl,bhln->bhn", weight, phi)
        f = f + torch.einsum("hp,bhpn->bhn", query_weight, plain.query_features(q))
        return plain.sinkhorn_plan(plain.logits(q, k, **OPTIONS), 3, row_dual=f) @ v

    sources = [getattr(inputs, name) for name in operator.reads]
    expected = gradients(unrolled, sources, *cotangents)
    _, found = operator.run(inputs, cotangents, refine=2, **OPTIONS)
    for name, gradient in zip(operator.reads, expected, strict=True):
        assert gradient.any()
        assert_close64(found[name], gradient)


def test_a_constant_in_the_dual_has_no_gradient():
    inputs = make_inputs()
    for name in ("closure_attention", "attention_plan"):
        _, found = OPERATORS[name].run(inputs)
        of_constant = found["row_dual"].sum(dim=-1)
        assert found["row_dual"].abs().max() > 1e-2
        assert_close64(of_constant, torch.zeros_like(of_constant))


@every_operator
def test_gradients_with_ties_are_finite(operator):
    inputs = make_inputs(queries=6)
    inputs.q[:, :, 3:] = inputs.q[:, :, :1].clone()
    inputs.k[:, :, 2:] = inputs.k[:, :, :1].clone()
    _, found = operator.run(inputs)
    assert all(gradient.isfinite().all() for gradient in found.values())


DEAD = [10.0**-e for e in (3, 8, 10, 12, 15, 19, 21, 22, 23, 25, 30, 38, 44)]


def tiny_gradients(operator, scale, mask, dtype):
    inputs = make_inputs()
    inputs = replace(inputs, q=inputs.q * scale, k=inputs.k * scale).map(lambda x: x.to(dtype))
    return operator.run(inputs, key_padding_mask=mask)


whole_and_padded = pytest.mark.parametrize(
    "mask", [None, torch.arange(7) >= torch.tensor([[7], [4]])], ids=["whole", "padded"]
)


@whole_and_padded
@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"query_features"}))
def test_gradients_are_finite_however_small_queries_and_keys_are(name, mask):
    for scale in DEAD:
        results, gradients = tiny_gradients(OPERATORS[name], scale, mask, torch.float32)
        for tensor in (*results, *gradients.values()):
            assert tensor.isfinite().all(), scale


@whole_and_padded
@pytest.mark.parametrize(
    ("name", "smallest"), [("adaptive_features", 1e-21), ("logit_features", 1e-10)]
)
def test_gradients_of_features_are_those_of_float64(name, smallest, mask):
    """Scales go down to where a variance, and with it the feature, is 0 in float32."""
    for scale in (s for s in DEAD if s > 0.5 * smallest):
        (single,), gradients = tiny_gradients(OPERATORS[name], scale, mask, torch.float32)
        (double,), expected = tiny_gradients(OPERATORS[name], scale, mask, torch.float64)
        assert relative_rms(single, double) < 1e-5
        for key in ("q", "k"):
            assert relative_rms(gradients[key], expected[key]) < 1e-4
