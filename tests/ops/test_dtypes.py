"""Output dtypes, and no loss of precision between rounding the inputs and the output."""

from dataclasses import replace

import pytest
import torch

from asap_exp.ops import sinkhorn_attention
from tests.ops.inputs import ATTENTIONS, OPERATORS, make_cotangents, make_inputs, relative_rms

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
EVERY_DTYPE = [FLOAT16, BFLOAT16, FLOAT32, FLOAT64]

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
every_attention = pytest.mark.parametrize("operator", ATTENTIONS.values(), ids=ATTENTIONS)
diagnostics = {name: operator for name, operator in OPERATORS.items() if name not in ATTENTIONS}
every_diagnostic = pytest.mark.parametrize("operator", diagnostics.values(), ids=diagnostics)

MASK = torch.arange(33) >= torch.tensor([[33], [20]])
masked_or_not = pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])


def rounded_inputs(dtype, parameters=None):
    """Make activations in `dtype`, and a fitted map in `parameters` or also in `dtype`."""
    inputs = make_inputs(queries=33, head_dim=8)
    parameters = dtype if parameters is None else parameters
    return inputs.map(lambda x: x.to(parameters)).map_tokens(lambda x: x.to(dtype))


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@every_attention
def test_output_has_the_dtype_of_the_values(operator, dtype):
    inputs = rounded_inputs(dtype)
    assert operator(inputs)[0].dtype == dtype
    for other in EVERY_DTYPE:
        assert operator(replace(inputs, v=inputs.v.to(other)))[0].dtype == other


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@every_diagnostic
def test_duals_potentials_and_plans_are_float32_or_float64(operator, dtype):
    expected = FLOAT64 if dtype == FLOAT64 else FLOAT32
    for parameters in EVERY_DTYPE:
        results = operator(rounded_inputs(dtype, parameters))
        assert {result.dtype for result in results} == {expected}


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@every_operator
def test_gradients_have_the_dtypes_of_the_inputs(operator, dtype):
    _, gradients = operator.run(rounded_inputs(dtype, FLOAT32))
    inputs = rounded_inputs(dtype, FLOAT32)
    assert all(
        gradient.dtype == getattr(inputs, name).dtype for name, gradient in gradients.items()
    )


@masked_or_not
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32])
@every_diagnostic
def test_computed_in_float32_from_the_rounded_inputs(operator, dtype, mask):
    inputs = rounded_inputs(dtype, FLOAT32)
    results = operator(inputs, key_padding_mask=mask)
    reference = operator(inputs.map(torch.Tensor.double), key_padding_mask=mask)
    for result, exact in zip(results, reference, strict=True):
        assert relative_rms(result, exact) < 2e-6


@masked_or_not
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32])
@every_attention
def test_output_is_wrong_by_its_own_rounding_alone(operator, dtype, mask):
    inputs = rounded_inputs(dtype, FLOAT32)
    out = operator(inputs, key_padding_mask=mask)[0]
    exact = operator(inputs.map(torch.Tensor.double), key_padding_mask=mask)[0]
    assert relative_rms(out, exact) < 2e-6 + 1.05 * relative_rms(exact.to(dtype), exact)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@every_attention
def test_values_of_higher_precision_are_not_rounded(operator, dtype):
    inputs = rounded_inputs(dtype, FLOAT32)
    inputs = replace(inputs, v=inputs.v.float() + 1e-5)
    exact = operator(inputs.map(torch.Tensor.double))[0]
    assert relative_rms(operator(inputs)[0], exact) < 2e-6


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32])
@every_operator
def test_gradients_are_right_to_the_rounding_of_the_inputs(operator, dtype):
    inputs = rounded_inputs(dtype, FLOAT32)
    cotangents = make_cotangents(operator(inputs))
    _, gradients = operator.run(inputs, cotangents)
    _, exact = operator.run(inputs.map(torch.Tensor.double), tuple(x.double() for x in cotangents))
    for name, gradient in gradients.items():
        own_rounding = relative_rms(exact[name].to(gradient.dtype), exact[name])
        # Twice: each term that uses an input may round its own part of the gradient.
        assert relative_rms(gradient, exact[name]) < 2e-5 + 2 * own_rounding


def test_half_precision_overflow_is_not_met_on_the_way():
    # |q|^2 and <q, k> exceed float16's 65504; the plan is harmless all the same.
    inputs = rounded_inputs(FLOAT16)
    q, k = inputs.q * 200, inputs.k * 200
    out = sinkhorn_attention(q, k, inputs.v, scale=1e-4)
    exact = sinkhorn_attention(q.double(), k.double(), inputs.v.double(), scale=1e-4)
    assert (q.double() @ k.double().mT).abs().max() > 65504
    assert relative_rms(out, exact) < 1e-3


@masked_or_not
@every_operator
def test_autocast_changes_no_bit(operator, mask):
    inputs = rounded_inputs(FLOAT32)
    expected = operator.run(inputs, key_padding_mask=mask)
    # Only the forward pass: an operator has no influence on a backward pass under autocast.
    leaves = inputs.map(lambda x: x.clone().requires_grad_())
    with torch.autocast("cpu", dtype=BFLOAT16):
        assert (leaves.q @ leaves.k.mT).dtype == BFLOAT16
        results = operator(leaves, key_padding_mask=mask)
    for result, plain in zip(results, expected[0], strict=True):
        assert result.dtype == FLOAT32
        assert torch.equal(result, plain)
    sources = [getattr(leaves, name) for name in operator.reads]
    gradients = torch.autograd.grad(results, sources, make_cotangents(results))
    for name, gradient in zip(operator.reads, gradients, strict=True):
        assert torch.equal(gradient, expected[1][name])
