"""The fused operators against the reference in float64: on a GPU, else in Triton's interpreter.

Outputs are NaN before a kernel writes them, so an entry that it omits fails the comparison.
"""

from dataclasses import replace

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from tests.ops.inputs import (
    ASAP,
    CLOSURE,
    OPERATORS,
    TEACHER,
    Inputs,
    make_cotangents,
    make_inputs,
    relative_rms,
)

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

LENGTHS = [1, 2, 17, 33]
if GPU:
    LENGTHS += [63, 64, 65, 100, 129, 197, 257, 1000, 1025, 4097]
LENGTHS_THAT_DIFFER = [(33, 20), (5, 40)] + ([(300, 200), (129, 1025)] if GPU else [])
ROUTES = {"as chosen": [], "in passes": ["keys in registers", "tiled"]}


# In the interpreter a launch has no warps.
few_and_many_heads = pytest.mark.parametrize(
    "heads", ["few heads", *(["many heads"] if GPU else [])], indirect=True
)


@pytest.fixture(params=ROUTES)
def route(request):
    """Run the chosen route, at these lengths mostly with the logits in registers, or passes."""
    with routes.force(*ROUTES[request.param]):
        yield


def inputs_for(dtype: torch.dtype = torch.float32, **shape) -> Inputs:
    return make_inputs(**shape).map(lambda x: x.to(DEVICE)).map_tokens(lambda x: x.to(dtype))


@pytest.fixture
def errors(record_property):
    """Return relative errors of a result and its gradients against float64, and report them."""

    def measured(operator, inputs: Inputs, backend: str = "triton", **options) -> dict[str, float]:
        exact = inputs.map(torch.Tensor.double)
        cotangents = make_cotangents(operator(exact, **options))
        cotangents = tuple(x.to(inputs.v) for x in cotangents)
        results, gradients = operator.run(inputs, cotangents, backend=backend, **options)
        expected, expected_gradients = operator.run(
            exact, tuple(x.double() for x in cotangents), **options
        )
        pairs = {"result": (results[0], expected[0])}
        pairs |= {name: (gradients[name], expected_gradients[name]) for name in gradients}
        found = {
            name: relative_rms(*pair) if pair[1].any() else 0.0 for name, pair in pairs.items()
        }
        record_property(f"{operator.function.__name__}, {backend}", found)
        return found

    return measured


def assert_small(found: dict[str, float], bound: float) -> None:
    assert all(error <= bound for error in found.values()), found


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("operator", [TEACHER, CLOSURE], ids=["teacher", "closure"])
@few_and_many_heads
def test_result_and_gradients_at_every_length(operator, length, route, errors, heads):
    inputs = inputs_for(batch=1, heads=2, queries=length, head_dim=16, value_dim=16)
    assert_small(errors(operator, inputs), 2e-4)


@pytest.mark.parametrize("lengths", LENGTHS_THAT_DIFFER)
@few_and_many_heads
def test_as_many_keys_as_one_likes(lengths, route, errors, heads):
    queries, keys = lengths
    inputs = inputs_for(batch=2, heads=1, queries=queries, keys=keys, head_dim=5, value_dim=24)
    assert_small(errors(TEACHER, inputs, eps=0.7), 2e-4)


@pytest.mark.parametrize("widths", [(1, 1), (12, 20), (40, 33)])
def test_widths_that_are_no_power_of_two(widths, route, errors):
    inputs = inputs_for(batch=1, heads=1, queries=20, head_dim=widths[0], value_dim=widths[1])
    assert_small(errors(TEACHER, inputs), 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_iters", [1, 2, 20])
@few_and_many_heads
def test_any_number_of_updates(num_iters, route, errors, heads):
    inputs = inputs_for(batch=1, heads=1, queries=18, head_dim=8)
    assert_small(errors(TEACHER, inputs, num_iters=num_iters), 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if GPU else [])])
@pytest.mark.parametrize("size", [1.0, 8.0], ids=["usual logits", "logits of some hundreds"])
@few_and_many_heads
def test_16_bit_inputs_lose_at_most_twice_what_the_reference_loses(
    dtype, size, route, errors, heads
):
    inputs = inputs_for(dtype, batch=1, heads=2, queries=64, head_dim=16, value_dim=16)
    inputs = replace(inputs, q=size * inputs.q, k=size * inputs.k, row_dual=inputs.row_dual.float())
    for operator, options in ((TEACHER, {"num_iters": 20}), (CLOSURE, {})):
        found, reference = (
            errors(operator, inputs, backend, **options) for backend in ("triton", "reference")
        )
        assert all(found[name] <= 2 * reference[name] + 1e-6 for name in found), (found, reference)


@pytest.mark.slow
def test_row_of_one_entry_gives_its_value_where_updates_have_not_converged(route, errors):
    """The plan then is not 1 in that entry, and its rounding must not scale the value."""
    inputs = inputs_for(torch.float16, batch=1, heads=2, queries=140, keys=40, head_dim=16)
    inputs = replace(inputs, q=11 * inputs.q, k=11 * inputs.k)
    found, reference = (
        errors(TEACHER, inputs, backend, num_iters=4)["result"]
        for backend in ("triton", "reference")
    )
    assert found <= 1.5 * reference


@pytest.mark.slow
@pytest.mark.parametrize("size", [3.0, 11.0])
def test_logits_of_some_hundreds(size, route, errors):
    inputs = inputs_for(batch=1, heads=1, queries=40, head_dim=16)
    inputs = replace(inputs, q=size * inputs.q, k=size * inputs.k)
    found = errors(TEACHER, inputs, num_iters=20)
    assert found["result"] <= 2e-5
    assert_small(found, 1e-3)


MASK = torch.tensor([[False] * 20, [False] + [True] * 19, [True] * 20, [True, False] * 10])


def padded_inputs(dtype: torch.dtype = torch.float32) -> tuple[Inputs, torch.Tensor]:
    return inputs_for(dtype, batch=4, heads=2, queries=20, head_dim=8), MASK.to(DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("operator", [TEACHER, CLOSURE, ASAP], ids=["teacher", "closure", "asap"])
def test_padding(operator, route, errors):
    inputs, mask = padded_inputs()
    assert_small(errors(operator, inputs, key_padding_mask=mask), 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("operator", [TEACHER, CLOSURE], ids=["teacher", "closure"])
def test_what_stands_in_padded_places_changes_nothing(operator, route):
    inputs, mask = padded_inputs()
    garbage = inputs.map_tokens(
        lambda x: torch.where(mask.view(4, 1, 20, *[1] * (x.dim() - 3)), torch.nan, x)
    )
    cotangents = make_cotangents(operator(inputs, key_padding_mask=mask))
    cotangents = tuple(x.to(DEVICE) for x in cotangents)
    options = {"key_padding_mask": mask, "backend": "triton"}
    results, gradients = operator.run(inputs, cotangents, **options)
    dirty_results, dirty_gradients = operator.run(garbage, cotangents, **options)
    torch.testing.assert_close(results, dirty_results, rtol=0, atol=0)
    torch.testing.assert_close(gradients, dirty_gradients, rtol=0, atol=0)
    assert not results[0].transpose(1, 2)[mask].any()


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_updates_with_keys_in_registers(padded, route, errors):
    """16-bit inputs run in passes, with or without a gradient, padded or not."""
    inputs, mask = padded_inputs(torch.float16)
    options = {"num_iters": 4, **({"key_padding_mask": mask} if padded else {})}
    assert_small(errors(TEACHER, inputs, **options), 1e-3)
    with torch.no_grad():
        found = TEACHER(inputs, backend="triton", **options)[0]
    exact = TEACHER(inputs.map(torch.Tensor.double), **options)[0]
    assert relative_rms(found, exact) < 1e-3


@pytest.mark.slow
def test_more_updates_than_fit_on_chip(route, errors):
    inputs = inputs_for(batch=1, heads=1, queries=18, head_dim=8)
    assert_small(errors(TEACHER, inputs, num_iters=70), 2e-4)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_gradient_of_one_input_alone(name, route):
    inputs = inputs_for(batch=1, heads=1, queries=18, head_dim=8)
    grads = []
    for dtype, by in ((torch.float32, "triton"), (torch.float64, "reference")):
        leaves = {x: getattr(inputs, x).to(dtype).detach() for x in ("q", "k", "v")}
        leaves[name].requires_grad_()
        out = ops.sinkhorn_attention(**leaves, num_iters=3, backend=by)
        grads.append(torch.autograd.grad(out.square().sum(), leaves[name])[0])
    assert relative_rms(*grads) < 2e-4


def test_values_of_another_dtype(route):
    inputs = inputs_for(batch=1, heads=1, queries=18, head_dim=8)
    out = ops.sinkhorn_attention(inputs.q, inputs.k, inputs.v.half(), backend="triton")
    exact = ops.sinkhorn_attention(inputs.q.double(), inputs.k.double(), inputs.v.half().double())
    assert out.dtype == torch.float16
    assert relative_rms(out, exact) < 1e-3


def test_views_of_one_projection(route):
    q, k, v = torch.randn(2, 20, 3, 3, 8, device=DEVICE).unbind(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = ops.sinkhorn_attention(q, k, v, num_iters=3, backend="triton")
    assert (
        relative_rms(out, ops.sinkhorn_attention(*(x.double() for x in (q, k, v)), num_iters=3))
        < 1e-5
    )
    assert out.transpose(1, 2).is_contiguous()  # no copy before the output projection


@pytest.mark.parametrize("keys", [20, 13])
def test_duals(keys, route):
    inputs = inputs_for(batch=1, heads=2, queries=20, keys=keys, head_dim=8)
    found = ops.sinkhorn_duals(inputs.q, inputs.k, num_iters=5, backend="triton")
    expected = ops.sinkhorn_duals(inputs.q.double(), inputs.k.double(), num_iters=5)
    for dual, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(dual.double(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_same_bits_twice(route):
    inputs = inputs_for(batch=1, heads=2, queries=20, head_dim=8)
    cotangents = tuple(x.to(DEVICE) for x in make_cotangents(TEACHER(inputs)))
    first, second = (TEACHER.run(inputs, cotangents, backend="triton") for _ in "ab")
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_empty_batch(route):
    inputs = inputs_for(batch=1, queries=5).map_tokens(lambda x: x[:0])
    assert TEACHER(inputs, backend="triton")[0].shape == (0, 3, 5, 5)


@pytest.mark.parametrize("operator", ["sinkhorn_duals", "sliced_potentials"])
def test_a_gradient_that_no_kernel_has_is_refused_or_left_to_the_reference(operator):
    operator = OPERATORS[operator]
    inputs = inputs_for(batch=1, queries=5)
    cotangents = tuple(x.to(DEVICE) for x in make_cotangents(operator(inputs)))
    with pytest.raises(RuntimeError, match="for which there is no fused kernel"):
        operator.run(inputs, cotangents, backend="triton")
    operator.run(inputs, cotangents, backend="auto")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.double(), "q is torch.float64"),
        (
            lambda x: torch.cat([x] * 40, dim=-1),
            "q has width 160, and the fused kernels take 1 to 128",
        ),
    ],
)
def test_inputs_that_no_kernel_takes(change, reason):
    inputs = inputs_for(batch=1, queries=5)
    inputs = replace(inputs, q=change(inputs.q), k=change(inputs.k))
    with pytest.raises(RuntimeError, match=f"backend='triton' cannot run: {reason}"):
        TEACHER(inputs, backend="triton")
    TEACHER(inputs)


@pytest.mark.slow
def test_compiled_without_a_graph_break():
    inputs = inputs_for(batch=1, heads=2, queries=20, head_dim=8)

    def loss(q, k, v):
        return ops.sinkhorn_attention(2 * q, k, v, num_iters=3, backend="triton").square().sum()

    leaves = [x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if GPU else "aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("through", "implicit_steps"), [(3, 0), (2, 0), (1, 2)])
def test_custom_operator_is_registered_soundly(through, implicit_steps):
    inputs = inputs_for(batch=1, heads=2, queries=6, head_dim=4)
    leaves = (x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    operator = torch.ops.asap_exp.sinkhorn.default
    torch.library.opcheck(
        operator,
        (*leaves, None, None, 3, through, 0.5, True, implicit_steps, "ieee"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
