"""ESPFormer's plan by kernels, forward and gradient, against the reference in float64."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from asap_exp import ops
from asap_exp.attention import build_attention
from asap_exp.ops import backend
from tests.ops.cases import pairs_of
from tests.ops.espformer_exactness import assert_exact, espformer_operator
from tests.ops.inputs import Inputs, make_cotangents, make_inputs, relative_rms

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes
from asap_exp.ops.kernels.espformer import op

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

LENGTHS = [1, 5, 16, 64, 100]
LONG = [144, 160, 256, 512]


def inputs_for(dtype: torch.dtype, size: float = 1.0, **shape: int) -> Inputs:
    inputs = make_inputs(**{"batch": 1, "heads": 2, "head_dim": 16, "queries": 20, **shape})
    inputs = replace(inputs, q=size * inputs.q, k=size * inputs.k)
    return inputs.map(lambda x: x.to(DEVICE, dtype))


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pairs_of(n=LENGTHS[1:], dtype=DTYPES, hard=[False, True], learned=[False, True])
def test_output_and_gradients(n: int, dtype: torch.dtype, hard: bool, learned: bool) -> None:
    inputs = inputs_for(dtype, queries=n, heads=1 if n > 16 else 2, head_dim=8, value_dim=8)
    assert_exact(espformer_operator(learned, hard=hard), inputs)


@pytest.mark.slow
@pairs_of(n=LONG, dtype=DTYPES[:2], hard=[False, True])
def test_output_and_gradients_of_many_tokens(n: int, dtype: torch.dtype, hard: bool) -> None:
    inputs = inputs_for(dtype, queries=n, heads=1, head_dim=8, value_dim=8, slices=1)
    assert_exact(espformer_operator(True, hard=hard), inputs)


@pytest.mark.slow
@pairs_of(width=[1, 24, 32, 64, *([128] if GPU else [])], dtype=DTYPES)
def test_any_width(width: int, dtype: torch.dtype) -> None:
    assert_exact(espformer_operator(False), inputs_for(dtype, head_dim=width, value_dim=width))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token(dtype: torch.dtype) -> None:
    """Its plan is 1, so that queries and keys have no gradient but that of rounding."""
    inputs = inputs_for(dtype, queries=1)
    out, found = espformer_operator(True).run(inputs, backend="triton")
    assert torch.equal(out[0], inputs.v)
    assert max(found[name].abs().max() for name in ("q", "k", "theta")) < 1e-5


MASK = torch.arange(20) >= torch.tensor([[20], [7], [0], [1]])


@pairs_of(dtype=DTYPES, hard=[False, True], learned=[False, True], n=[20, 70])
@pytest.mark.slow
def test_padding(dtype: torch.dtype, hard: bool, learned: bool, n: int) -> None:
    mask = torch.cat([MASK, torch.ones(4, n - 20, dtype=torch.bool)], dim=1).to(DEVICE)
    inputs = inputs_for(dtype, batch=4, queries=n, heads=1, head_dim=4, value_dim=8)
    operator = espformer_operator(learned, hard=hard)
    assert_exact(operator, inputs, key_padding_mask=mask)
    cotangents = make_cotangents(operator(inputs))
    both = []
    for fill in (0.0, torch.nan):
        given = inputs.map_tokens(partial(filled, mask=mask, value=fill))
        both.append(operator.run(given, cotangents, backend="triton", key_padding_mask=mask))
    (out, found), (again, same) = both
    assert torch.equal(out[0], again[0])
    assert not out[0][2].any(), "a sample without a valid token"
    for name in operator.reads:
        assert torch.equal(found[name], same[name]), name
    for name in "qkv":
        assert not found[name].masked_select(mask[:, None, :, None]).any(), name


def filled(x: Tensor, mask: Tensor, value: float) -> Tensor:
    shape = (len(mask), 1, mask.shape[1], *(1,) * (x.dim() - 3))
    return x.masked_fill(mask.view(shape), value)


@pytest.mark.parametrize("n", [20, 70])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1e4},
        {"tau": 1.0},
        {"tau": 1e-6, "temperature": 1.0},
    ],
    ids=["all slices alike", "one slice alone", "blurred", "sharp"],
)
def test_any_softness(n: int, dtype: torch.dtype, options: dict) -> None:
    """Slices without weight are left out, and of sharp sorts only few entries are not 0."""
    inputs = inputs_for(dtype, queries=n, heads=1, head_dim=8, value_dim=8)
    options = {"temperature": 10.0, "tau": 1e-2} | options
    if options["tau"] == 1e-6 and dtype == torch.float32:
        pytest.skip("float32 coordinates decide such entries by their last bits")
    # Gradients of blurred sorts are small differences, whose last bits are chance.
    assert_exact(espformer_operator(True, **options), inputs, more=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sharpest_sorts_are_hard_ones(dtype: torch.dtype) -> None:
    inputs = inputs_for(dtype, queries=20)
    sharp, found = espformer_operator(True, tau=1e-80).run(inputs, backend="triton")
    (hard,) = espformer_operator(True, hard=True)(inputs, backend="triton")
    assert torch.equal(sharp[0], hard)
    assert all(x.isfinite().all() for x in found.values())


@pytest.mark.parametrize("n", [20, 70])
def test_gaps_of_far_coordinates_are_exact(n: int) -> None:
    """Only the gaps of coordinates count, which are exact though all are far from 0."""
    inputs = inputs_for(torch.float32, queries=n, heads=1, head_dim=4, value_dim=4)
    assert_exact(espformer_operator(False), replace(inputs, q=inputs.q + 64, k=inputs.k + 64))


@pytest.mark.parametrize("size", [0.0, 1e-3, 30.0, 1e4], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_of_any_size(size: float, dtype: torch.dtype) -> None:
    """All tokens at one point, or far from each other: everything is finite, and rows exact."""
    inputs = inputs_for(dtype, size, queries=20)
    out, found = espformer_operator(True).run(inputs, backend="triton")
    assert all(x.isfinite().all() for x in (*out, *found.values()))
    expected = espformer_operator(True)(inputs.map(Tensor.double))[0]
    most = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    if size < 30:
        assert relative_rms(out[0], expected) < most


def test_gradient_of_a_tiny_and_a_huge_cotangent() -> None:
    """float16 products hold it relative to its largest entry."""
    inputs = inputs_for(torch.bfloat16, queries=20, heads=1)
    operator = espformer_operator(True)
    (given,) = make_cotangents(operator(inputs))
    _, usual = operator.run(inputs, (given,), backend="triton")
    for route, power in itertools.product(("plan in registers", "tiled"), (-60, 60)):
        with routes.force(route):
            _, found = operator.run(inputs, (given * 2.0**power,), backend="triton")
        for name, gradient in found.items():
            assert relative_rms(gradient.double() * 2.0**-power, usual[name]) < 1e-2, name


@pytest.mark.parametrize("route", ["plan in registers", "tiled"])
def test_gradient_of_a_plan_beyond_float16(route: str) -> None:
    """What all entries of the plan's gradient have in common is large, and changes nothing."""
    inputs = inputs_for(torch.float16, queries=20, heads=1)
    inputs = replace(inputs, v=inputs.v + 300)
    operator = espformer_operator(True)
    cotangents = tuple(x + 300 for x in make_cotangents(operator(inputs)))
    with routes.force(route):
        _, found = operator.run(inputs, cotangents, backend="triton")
    _, expected = operator.run(inputs.map(Tensor.double), tuple(x.double() for x in cotangents))
    for name, gradient in found.items():
        assert relative_rms(gradient, expected[name]) < 2.0**-8, name


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_nan_stays_in_its_head_and_is_not_hidden(dtype: torch.dtype) -> None:
    inputs = inputs_for(dtype, queries=20)
    expected = espformer_operator(False)(inputs, backend="triton")[0]
    inputs.q[0, 1, 3, 2] = torch.nan
    out, found = espformer_operator(False).run(inputs, backend="triton")
    assert torch.equal(out[0][:, 0], expected[:, 0])
    for x in (out[0], *found.values()):
        assert x[:, 0].isfinite().all()
        assert x[:, 1].isnan().any()


@pytest.mark.parametrize("hard", [False, True])
def test_both_routes_make_the_same_plan(hard: bool) -> None:
    inputs = inputs_for(torch.float16, queries=33)
    operator = espformer_operator(True, hard=hard)
    results = []
    for route in ("plan in registers", "tiled"):
        with routes.force(route), routes.recorded() as taken:
            results.append(operator.run(inputs, backend="triton"))
        assert ("espformer_plan", route) in taken
    (out, found), (other, same) = results
    for name, one, two in (("out", out[0], other[0]), *((x, found[x], same[x]) for x in found)):
        assert relative_rms(one, two) < 2.0**-8, name


def test_unlike_dtypes_and_layouts() -> None:
    inputs = inputs_for(torch.float16, queries=20)
    tokens_first = inputs.map_tokens(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    operator = espformer_operator(True)
    expected, gradients = operator.run(inputs, backend="triton")
    out, found = operator.run(tokens_first, backend="triton")
    assert torch.equal(out[0], expected[0])
    assert all(torch.equal(found[name], gradients[name]) for name in found)
    mixed = replace(inputs, v=inputs.v.float())
    assert operator(mixed, backend="triton")[0].dtype == torch.float32
    assert_exact(operator, replace(mixed, q=mixed.q.float(), k=mixed.k.float()))


@pytest.mark.parametrize("ieee", [False, True])
def test_products_of_float32(ieee: bool) -> None:
    """Three TF32 passes and IEEE arithmetic, which differ on a GPU alone."""
    inputs = inputs_for(torch.float32, queries=20)
    operators = backend.fused_ieee if ieee else backend.fused
    options = {"temperature": 10.0, "tau": 1e-3, "theta": inputs.theta, "hard": False}
    found = operators.espformer_attention(
        inputs.q, inputs.k, inputs.v, key_padding_mask=None, **options
    )
    exact = espformer_operator(True)(inputs.map(Tensor.double))[0]
    assert relative_rms(found, exact) < 2e-6


def test_an_empty_batch_and_no_gradient() -> None:
    inputs = inputs_for(torch.float16, batch=0)
    out, found = espformer_operator(False).run(inputs, backend="triton")
    assert out[0].shape == inputs.v.shape
    assert found["q"].shape == inputs.q.shape
    inputs = inputs_for(torch.float16)
    (expected,), _ = espformer_operator(False).run(inputs, backend="triton")
    with torch.no_grad():
        assert torch.equal(espformer_operator(False)(inputs, backend="triton")[0], expected)


def test_other_numbers_of_keys_run_the_reference_and_say_why() -> None:
    inputs = inputs_for(torch.float32, queries=20, keys=30)
    operator = espformer_operator(True)
    with routes.recorded() as taken:
        (out,) = operator(inputs, backend="triton")
    assert taken == [("espformer", "reference")]
    torch.testing.assert_close(out, operator(inputs, backend="reference")[0])
    found = ops.explain("espformer_attention", n=20, m=30, capability=(9, 0))
    assert "takes as many queries as keys, got n=20 and m=30" in str(found)
    found = ops.explain("espformer_attention", n=50_000, capability=(9, 0))
    assert "takes up to 46,340 tokens, got 50000" in str(found)


@pytest.mark.parametrize(
    ("n", "dtype", "route"),
    [
        (64, torch.bfloat16, "plan in registers"),
        (65, torch.bfloat16, "tiled"),
        (16, torch.float32, "tiled"),
    ],
)
def test_explained_is_what_runs(n: int, dtype: torch.dtype, route: str) -> None:
    inputs = inputs_for(dtype, queries=n, head_dim=2, heads=1)
    found = ops.explain("espformer_attention", inputs.q, gradient=True, backend="triton")
    with routes.recorded() as taken:
        espformer_operator(False).run(inputs, backend="triton")
    assert found.taken == taken == [("espformer", "kernels"), ("espformer_plan", route)]


@pytest.mark.parametrize("route", ["plan in registers", "tiled"])
@pytest.mark.parametrize("save", [False, True])
def test_what_is_traced_has_the_shapes_of_what_runs(route: str, save: bool) -> None:
    x = torch.randn(2, 3, 5, 20, device=DEVICE)
    distances = torch.rand(2, 3, 20, 20, device=DEVICE)
    arguments = (x, x + 1, distances, None, 10.0, 1e-3, False, save, torch.float16, "ieee")
    with routes.force(route):
        torch.library.opcheck(op._plan, arguments, test_utils="test_faketensor")


@pytest.fixture
def compiled() -> Callable[..., Callable]:
    torch.compiler.reset()
    return lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Dynamo detected")  # a call through a cache, on a GPU
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_is_traced_without_a_break(compiled: Callable, masked: bool) -> None:
    inputs = inputs_for(torch.float16, queries=20, batch=4)
    mask = MASK.to(DEVICE) if masked else None
    attention = build_attention({"name": "espformer", "backend": "triton"})
    results = []
    for layer in (attention, compiled(attention)):
        leaves = [x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
        out = layer(*leaves, key_padding_mask=mask)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0, got -1.0"),
        ({"tau": 0.0}, ValueError, "tau must be finite and > 0, got 0.0"),
        ({"tau": "soft"}, TypeError, "tau must be a number, got 'soft'"),
        ({"hard": 1}, TypeError, "hard must be True or False"),
        ({"theta": torch.ones(1, 3, 5)}, ValueError, r"theta must be \[heads, slices, head_dim\]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("operator", ["espformer_attention", "espformer_plan"])
def test_wrong_options_are_refused(operator: str, options: dict, kind: type, words: str) -> None:
    inputs = inputs_for(torch.float32)
    given = (inputs.q, inputs.k, *([inputs.v] if operator == "espformer_attention" else []))
    theta = options.get("theta")
    options = options if theta is None else {"theta": theta.to(DEVICE)}
    with pytest.raises(kind, match=words):
        getattr(ops, operator)(*given, **options)
