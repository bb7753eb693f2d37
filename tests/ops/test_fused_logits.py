"""Logit features and relaxed updates in separate launches, against the reference in float64."""

from dataclasses import replace

import pytest
import torch

from asap_exp import ops
from asap_exp.ops.reference.sinkhorn import logits, update
from tests.ops.inputs import OPERATORS, Inputs, make_cotangents, make_inputs, relative_rms

pytest.importorskip("triton")
from asap_exp.ops import routes
from asap_exp.ops.backend import INTERPRETED
from asap_exp.ops.kernels.asap.logit_features import logit_dual
from asap_exp.ops.kernels.sinkhorn.updates import refined_dual

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.usefixtures("unwritten_is_nan"),
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU, and no interpreter"
    ),
]

LENGTHS = [(20, torch.bfloat16), (70, torch.float16), (140, torch.float32)]
if not INTERPRETED:
    LENGTHS = [(tokens, dtype) for tokens in (20, 70, 140) for _, dtype in LENGTHS]

RELAXED, DUAL = OPERATORS["relaxed_asap_attention"], OPERATORS["relaxed_dual"]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}

every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def inputs_of(tokens: int, dtype: torch.dtype = torch.float32, **shape) -> Inputs:
    shape = {"batch": 2, "heads": 2, "head_dim": 16, "value_dim": 16} | shape
    inputs = make_inputs(dtype=torch.float32, queries=tokens, **shape)
    return inputs.map(lambda x: x.to(DEVICE)).map_tokens(lambda x: x.to(dtype))


def masked(tokens: int) -> torch.Tensor:
    """Return the mask of a sample with some padding and one with a single valid token."""
    first_padded = torch.tensor([[tokens - tokens // 3], [1]])
    return (torch.arange(tokens) >= first_padded).to(DEVICE)


def check_dual(x: Inputs, bound: float = 1e-4, **options) -> torch.Tensor:
    options = {"eps": 0.7, "scale": 0.4, "key_padding_mask": None} | options
    found = logit_dual(x.q, x.k, x.logit_weight, **options)
    features = ops.logit_features(x.q.double(), x.k.double(), **options)
    expected = torch.einsum("hp,bhpn->bhn", x.logit_weight.double(), features)
    assert found.dtype == torch.float32
    # The products are exact whatever the inputs' dtype, so every dtype comes as close.
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)
    return found


@every_dtype
@pytest.mark.parametrize("tokens", [1, 2, 17, 64, 130])
def test_weighted_features(tokens, dtype):
    check_dual(inputs_of(tokens, dtype))
    found = check_dual(inputs_of(tokens, dtype), key_padding_mask=masked(tokens), scale=-0.5)
    assert not found.transpose(1, 2)[masked(tokens)].any()


@every_dtype
def test_weighted_features_of_other_widths_and_keys(dtype):
    check_dual(inputs_of(20, dtype, head_dim=5))
    check_dual(inputs_of(20, dtype, keys=33, head_dim=70))


@every_dtype
def test_weighted_features_of_queries_far_from_the_origin(dtype):
    x = inputs_of(40, dtype)
    check_dual(replace(x, q=x.q + 20.0))


def test_keys_that_are_nearly_orthogonal_to_what_queries_differ_in():
    x = inputs_of(40)
    along = torch.nn.functional.normalize(x.k[:, :, :1], dim=-1)
    q = x.q[..., :1] * along
    k = x.k - (1 - 1e-3) * (x.k * along).sum(dim=-1, keepdim=True) * along
    check_dual(replace(x, q=q.double(), k=k.double()).map_tokens(torch.Tensor.float), bound=3e-2)


def test_keys_that_are_nearly_alike():
    x = inputs_of(140, heads=1)
    check_dual(replace(x, k=x.k[:, :, :1] + 1e-6 * x.k))


def test_what_stands_in_padded_places_changes_nothing():
    x, mask = inputs_of(19), masked(19)
    garbage = x.map_tokens(torch.Tensor.clone)
    for tensor in (garbage.q, garbage.k):
        tensor.transpose(1, 2)[mask] = torch.nan
    clean = check_dual(x, key_padding_mask=mask)
    found = check_dual(garbage, key_padding_mask=mask)
    torch.testing.assert_close(found, clean, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_constant_columns_have_none(scale):
    x = inputs_of(70)
    if scale:
        x = replace(x, q=x.q[:, :, :1].expand_as(x.q))
    found = logit_dual(x.q, x.k, x.logit_weight, eps=1.0, scale=scale, key_padding_mask=None)
    assert not found.any()


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "dtype"), LENGTHS, ids=str)
def test_attention_and_dual(tokens, dtype):
    x = inputs_of(tokens, dtype, heads=1, slices=1)
    cases = [(RELAXED, masked(tokens)), (DUAL, None)]
    if tokens < 140 or not INTERPRETED:
        cases += [(RELAXED, None), (DUAL, masked(tokens))]
    for operator, mask in cases:
        with routes.force("separate operators"):
            (out,) = operator(x, backend="triton", key_padding_mask=mask)
        (expected,) = operator(x.map(torch.Tensor.double), key_padding_mask=mask)
        assert relative_rms(out, expected) <= TOLERANCE[dtype]


def test_gradient_of_relaxed_attention():
    x = inputs_of(20)
    cotangents = tuple(y.to(DEVICE) for y in make_cotangents(RELAXED(x)))
    _, found = RELAXED.run(x, cotangents, backend="triton")
    _, expected = RELAXED.run(x.map(torch.Tensor.double), tuple(y.double() for y in cotangents))
    for name, gradient in found.items():
        assert relative_rms(gradient, expected[name]) <= 1e-4, name


def test_one_relaxation_for_all_heads():
    x = inputs_of(20)
    options = {"eps": 0.7, "scale": 0.4}
    found = refined_dual(x.q, x.k, x.row_dual, 2, 1.5, key_padding_mask=None, **options)
    S = logits(x.q.double(), x.k.double(), mask=None, **options)
    expected = update(S, x.row_dual.double(), 2, None, 1.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", [None, [[False] * 4 + [True]] * 2])
def test_custom_operator_is_registered_soundly(mask):
    x = inputs_of(5)
    mask = None if mask is None else torch.tensor(mask, device=DEVICE)
    arguments = (x.q, x.k, x.logit_weight, mask, 0.5, "ieee")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.asap_exp.logit_dual.default, arguments, test_utils=tests)
