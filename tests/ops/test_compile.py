"""torch.compile without a graph break gives the same results as eager mode."""

import pytest
import torch

from asap_exp import ops
from tests.ops.inputs import OPERATORS, make_cotangents, make_inputs

pytestmark = pytest.mark.slow

MASK = torch.arange(6) >= torch.tensor([[6], [4]])

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
masked_or_not = pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Reset the compiler, so that one test's recompilations do not count for the next."""
    torch.compiler.reset()


def compiled(function, backend="eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


@masked_or_not
@every_operator
def test_compiled_operator_equals_eager(operator, mask):
    inputs = make_inputs(queries=6)
    function = compiled(lambda inputs, mask: operator(inputs, key_padding_mask=mask))
    expected = operator(inputs, key_padding_mask=mask)
    for result, eager in zip(function(inputs, mask), expected, strict=True):
        torch.testing.assert_close(result, eager, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "mask"), [("sinkhorn_attention", None), ("asap_attention", MASK)])
def test_compiled_gradients_equal_eager(name, mask):
    operator = OPERATORS[name]
    inputs = make_inputs(queries=6)
    cotangents = make_cotangents(operator(inputs))
    _, expected = operator.run(inputs, cotangents, key_padding_mask=mask)
    function = compiled(lambda inputs: operator(inputs, key_padding_mask=mask), "aot_eager")
    leaves = inputs.map(lambda x: x.clone().requires_grad_())
    sources = [getattr(leaves, name) for name in operator.reads]
    gradients = torch.autograd.grad(function(leaves), sources, cotangents)
    for name, gradient in zip(operator.reads, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)


def test_compiled_under_autocast_equals_eager_without():
    inputs = make_inputs(queries=6, dtype=torch.float32)
    operator = OPERATORS["asap_attention"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (out,) = compiled(operator)(inputs)
    torch.testing.assert_close(out, operator(inputs)[0], rtol=1e-6, atol=1e-7)


@masked_or_not
def test_compiled_operator_follows_the_number_of_tokens(mask):
    operator = OPERATORS["asap_attention"]
    function = compiled(lambda inputs, mask: operator(inputs, key_padding_mask=mask))
    for tokens in (6, 5, 1):
        inputs = make_inputs(queries=tokens)
        mask_of_tokens = None if mask is None else mask[:, :tokens]
        expected = operator(inputs, key_padding_mask=mask_of_tokens)
        torch.testing.assert_close(function(inputs, mask_of_tokens), expected)


def test_compiled_operator_follows_the_numbers_of_queries_and_keys():
    operator = OPERATORS["closure_attention"]
    function = compiled(operator)
    for queries, keys in ((6, 6), (6, 4), (4, 7)):
        inputs = make_inputs(queries=queries, keys=keys)
        torch.testing.assert_close(function(inputs), operator(inputs))


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("num_iters", [1, 2, 5]),
        ("eps", [1.0, 0.5, 2.0]),
        ("scale", [None, 0.3, 0.7, 1.1]),
    ],
)
def test_compiled_operator_follows_its_options(option, values):
    inputs = make_inputs(queries=6)
    q, k, v = inputs.q, inputs.k, inputs.v

    def attention(value):
        return ops.sinkhorn_attention(q, k, v, **{option: value})

    function = compiled(attention)
    for value in values:
        torch.testing.assert_close(function(value), attention(value))


def test_layers_with_different_temperatures_compile_as_one_model():
    inputs = make_inputs(queries=6)

    class Layer(torch.nn.Module):
        def __init__(self, eps):
            super().__init__()
            self.eps = eps

        def forward(self, x):
            return ops.sinkhorn_attention(x, inputs.k, x, eps=self.eps)

    model = torch.nn.Sequential(Layer(1.0), Layer(0.5), Layer(2.0))
    torch.testing.assert_close(compiled(model)(inputs.q), model(inputs.q))
    # The same code compiled layer by layer, as large models do.
    expected = model(inputs.q)
    for layer in model:
        layer.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(inputs.q), expected)


def test_errors_are_raised_while_tracing():
    inputs = make_inputs(queries=6)
    function = torch.compile(
        lambda q: ops.sinkhorn_attention(q, inputs.k, inputs.v, num_iters=0), backend="eager"
    )
    with pytest.raises(ValueError, match="num_iters must be at least 1, got 0"):
        function(inputs.q)
