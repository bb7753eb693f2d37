"""ASAP in one launch against the reference in float64: on a GPU, else in Triton's interpreter.

Outputs are NaN before a kernel writes them, so an entry that it omits fails the comparison.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from tests.ops.cases import pairs_of
from tests.ops.inputs import OPERATORS, Inputs, Operator, make_inputs, relative_rms
from tests.ops.taken import Count

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
from asap_exp.ops import routes
from asap_exp.ops.backend import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
COMPILER = "aot_eager" if INTERPRETED else "inductor"  # inductor needs a C++ compiler on a CPU
pytestmark = [
    pytest.mark.usefixtures("unwritten_is_nan"),
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU, and no interpreter"
    ),
]

ASAP = replace(OPERATORS["asap_attention"], fixed={"refine": 0})
ADAPTIVE = replace(OPERATORS["adaptive_asap_attention"], fixed={"refine": 0})
RELAXED = replace(OPERATORS["relaxed_asap_attention"], fixed={"refine": 0})
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}

TOKENS = (17, 64) if INTERPRETED else (17, 63, 64)
HEADS = ("few heads", "many heads")

every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def taken():
    with routes.recorded() as record:
        yield record


@pytest.fixture
def launches(taken):
    """Count the calls of the operator with one launch, or several if many heads are refined."""
    return Count(taken, "one operator")


def inputs_of(tokens: int, dtype: torch.dtype = torch.float32, **shape) -> Inputs:
    shape = {"batch": 1, "heads": 2, "head_dim": 16, "value_dim": 16} | shape
    inputs = make_inputs(dtype=torch.float32, queries=tokens, **shape)
    return inputs.map(lambda x: x.to(DEVICE)).map_tokens(lambda x: x.to(dtype))


def check(inputs: Inputs, operator: Operator = ASAP, **options) -> torch.Tensor:
    (out,) = operator(inputs, backend="triton", **options)
    (expected,) = operator(inputs.map(torch.Tensor.double), **options)
    assert out.dtype == inputs.v.dtype
    assert relative_rms(out, expected) <= TOLERANCE[inputs.q.dtype]
    return out


@pairs_of(tokens=(1, 2, *TOKENS), dtype=tuple(TOLERANCE), heads=HEADS)
@pytest.mark.usefixtures("heads")
def test_agrees_with_the_reference(tokens, dtype, launches):
    inputs = inputs_of(tokens, dtype)
    if tokens == 1:  # the plan is 1, whatever the dual
        torch.testing.assert_close(ASAP(inputs, backend="triton", refine=0)[0], inputs.v)
    else:
        check(inputs, refine=0)
    assert len(launches) == 1


@pytest.mark.slow
@pairs_of(refine=(1, 6), dtype=tuple(TOLERANCE), heads=HEADS)
def test_refined(refine, dtype, heads, launches, taken):
    separate = Count(taken, "separate launches")
    mask = torch.arange(13, device=DEVICE)[None] > 8
    for operator in (ASAP, ADAPTIVE, RELAXED):
        check(inputs_of(13, dtype), operator, refine=refine)
        check(inputs_of(13, dtype), operator, refine=refine, key_padding_mask=mask, scale=-0.5)
    assert len(launches) == 6
    assert len(separate) == (4 if heads == "many heads" else 0)  # not with logit features


@pytest.mark.slow
@pairs_of(
    tokens=(2, *TOKENS),
    dtype=tuple(TOLERANCE),
    operator={"adaptive": ADAPTIVE, "and logits": RELAXED},
    heads=HEADS,
)
@pytest.mark.usefixtures("heads")
def test_further_features(operator, tokens, dtype, launches):
    check(inputs_of(tokens, dtype, slices=8), operator)
    mask = torch.arange(tokens, device=DEVICE)[None] > tokens // 2
    check(
        inputs_of(tokens, dtype, head_dim=5), operator, key_padding_mask=mask, eps=0.7, scale=-1.0
    )
    assert len(launches) == 2


@every_dtype
def test_without_query_weight(dtype):
    inputs = inputs_of(17, dtype)
    options: dict[str, Any] = {"eps": 0.7, "scale": -0.4}
    arguments = (inputs.q, inputs.k, inputs.v, inputs.theta, inputs.weight)
    out = ops.asap_attention(*arguments, backend="triton", **options)
    expected = ops.asap_attention(*(x.double() for x in arguments), **options)
    assert relative_rms(out, expected) <= TOLERANCE[dtype]


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("slices", [1, 9, 16])
def test_any_number_of_slices_and_channels(slices, dtype, launches):
    check(inputs_of(20, dtype, slices=slices, head_dim=5, value_dim=24))
    check(inputs_of(20, dtype, slices=slices, head_dim=70, value_dim=3))
    assert len(launches) == 2


@pytest.mark.parametrize("size", [1.0, 8.0], ids=["usual logits", "logits of some hundreds"])
@pytest.mark.parametrize("dtype", [torch.float16, *([] if INTERPRETED else [torch.bfloat16])])
def test_16_bit_inputs_lose_at_most_twice_what_the_reference_loses(dtype, size):
    inputs = inputs_of(64, dtype)
    inputs = replace(inputs, q=size * inputs.q, k=size * inputs.k)
    (expected,) = ASAP(inputs.map(torch.Tensor.double))
    fused, reference = (
        relative_rms(ASAP(inputs, backend=by)[0], expected) for by in ("triton", "reference")
    )
    assert fused <= 2 * reference


@pytest.mark.slow
@every_dtype
def test_padded_places_are_zero_and_change_nothing(dtype, launches):
    rows = [[False] * 12 + [True] * 7, [True] * 19, [False] * 19, [True] * 5 + [False] * 14]
    mask = torch.tensor(rows, device=DEVICE)
    inputs = inputs_of(19, dtype, batch=len(mask), heads=1)
    garbage = inputs.map_tokens(torch.Tensor.clone)
    for x in (garbage.q, garbage.k, garbage.v):
        x.transpose(1, 2)[mask] = torch.nan
    out = check(garbage, key_padding_mask=mask, refine=0)
    assert not out.transpose(1, 2)[mask].any()
    clean = ASAP(inputs, backend="triton", key_padding_mask=mask, refine=0)[0]
    torch.testing.assert_close(out, clean, rtol=0, atol=0)
    assert len(launches) == 2


@pytest.mark.slow
@every_dtype
def test_views_of_one_projection(dtype):
    inputs = inputs_of(20, dtype, batch=2, heads=3, head_dim=8)
    qkv = torch.randn(2, 20, 3, 3, 8, device=DEVICE, dtype=dtype).unbind(2)
    q, k, v = (x.transpose(1, 2) for x in qkv)
    out = check(replace(inputs, q=q, k=k, v=v, theta=inputs.theta.mT.contiguous().mT))
    assert out.transpose(1, 2).is_contiguous()  # no copy before the output projection


@pytest.mark.slow
@every_dtype
def test_ties_and_queries_far_from_the_origin(dtype):
    inputs = inputs_of(33, dtype)
    check(replace(inputs, q=inputs.q.round(), k=inputs.k.round()))
    check(replace(inputs, q=inputs.q + 20.0))


@pytest.mark.slow
def test_same_bits_twice():
    inputs = inputs_of(40, torch.float16)
    first, second = (ASAP(inputs, backend="triton", refine=0) for _ in "ab")
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_empty_batch():
    inputs = inputs_of(5).map_tokens(lambda x: x[:0])
    assert ASAP(inputs, backend="triton")[0].shape == (0, 2, 5, 16)


@pytest.mark.parametrize(
    "trained", ["q", "v", "theta", "weight", "query_weight", "adaptive_weight", "logit_weight"]
)
@pytest.mark.parametrize("refine", [0, 1])
def test_a_gradient_takes_the_other_path(trained, refine, launches):
    inputs = inputs_of(6)
    getattr(inputs, trained).requires_grad_()
    (out,) = RELAXED(inputs, backend="triton", refine=refine)
    assert out.requires_grad
    assert not launches
    with torch.no_grad():
        again = RELAXED(inputs, backend="triton", refine=refine)[0]
        torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-5)
    assert launches


@pytest.mark.parametrize(
    "shape", [{"slices": 17}, {"tokens": 65}, {"keys": 7}, {"tokens": 129, "dtype": torch.float16}]
)
def test_what_does_not_fit_takes_the_other_path(shape, launches):
    inputs = inputs_of(**{"tokens": 5, "heads": 1} | shape)
    check(inputs)
    assert not launches


@pytest.mark.slow
def test_compiled_without_a_graph_break():
    inputs = inputs_of(20)

    def attention(q, k, v):
        arguments = (inputs.theta, inputs.weight, inputs.query_weight)
        return ops.asap_attention(2 * q, k, v, *arguments, backend="triton") + 1

    expected = attention(inputs.q, inputs.k, inputs.v)
    found = torch.compile(attention, fullgraph=True, backend=COMPILER)(inputs.q, inputs.k, inputs.v)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("heads")
@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("mask", [None, [[False] * 4 + [True]]])
def test_custom_operator_is_registered_soundly(mask, refine):
    x = inputs_of(5)
    mask = None if mask is None else torch.tensor(mask, device=DEVICE)
    weights = (x.theta, x.weight, x.query_weight, x.adaptive_weight, x.logit_weight, x.relaxation)
    arguments = (x.q, x.k, x.v, *weights, mask, refine, 0.5, "ieee")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.asap_exp.asap.default, arguments, test_utils=tests)
