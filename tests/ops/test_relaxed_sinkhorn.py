"""Relaxed updates, by the reference and fused: on a GPU, else in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from asap_exp import ops
from asap_exp.attention import RelaxedSinkhornAttention
from asap_exp.ops import backend, routing
from asap_exp.ops.reference.sinkhorn import logits
from tests.ops import plain
from tests.ops.inputs import (
    OPERATORS,
    Inputs,
    assert_close64,
    identity_values,
    make_cotangents,
    make_inputs,
    relative_rms,
)

RELAXED, TEACHER = OPERATORS["relaxed_sinkhorn_attention"], OPERATORS["sinkhorn_attention"]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
GPU = torch.cuda.is_available()

fused = pytest.mark.skipif(backend.fused is None, reason="Triton is not installed")
few_and_many_heads = pytest.mark.parametrize(
    "heads", ["few heads", *(["many heads"] if GPU else [])], indirect=True
)


def test_definition():
    """On scaling vectors, a relaxed update takes a to a (a' / a)^w."""
    x = make_inputs()
    K = logits(x.q, x.k, eps=1.0, scale=0.5, mask=None).exp()
    a = torch.ones_like(x.row_dual)
    for last in (False, False, True):
        b = 1 / (K * a[..., None]).sum(dim=-2)
        plain_a = 1 / (K * b[..., None, :]).sum(dim=-1)
        a = plain_a if last else a * (plain_a / a) ** 1.5
    expected = a[..., None] * K * b[..., None, :] @ x.v
    assert_close64(RELAXED(x)[0], expected)


def test_fully_relaxed_is_plain():
    x = make_inputs()
    assert_close64(RELAXED(x, relaxation=1.0)[0], TEACHER(x)[0])


def test_over_relaxed_comes_closer_to_the_plan_of_many_updates():
    x = make_inputs(queries=20)
    x = identity_values(replace(x, q=2 * x.q, k=2 * x.k))
    (goal,) = TEACHER(x, num_iters=500)
    plain_error, relaxed_error = (
        (RELAXED(x, num_iters=8, relaxation=w)[0] - goal).abs().sum() for w in (1.0, 1.5)
    )
    assert relaxed_error < 0.7 * plain_error


def test_attention_and_its_plan():
    x = make_inputs()
    attend = RelaxedSinkhornAttention(num_iters=4, relaxation=1.4, eps=0.8)
    plan = attend.plan(x.q, x.k)
    assert_close64(attend(x.q, x.k, x.v), plan @ x.v)
    S = plain.logits(x.q, x.k, eps=0.8, scale=0.5)
    assert_close64(
        RelaxedSinkhornAttention(num_iters=4, relaxation=1.0, eps=0.8).plan(x.q, x.k),
        plain.sinkhorn_plan(S, 4),
    )


@pytest.mark.parametrize("relaxation", [0.0, 2.0, -1.0, float("nan")])
def test_relaxations_that_do_not_converge_are_refused(relaxation):
    x = make_inputs()
    with pytest.raises(ValueError, match="relaxation must be > 0 and < 2"):
        ops.relaxed_sinkhorn_attention(x.q, x.k, x.v, relaxation=relaxation)
    with pytest.raises(ValueError, match="relaxation must be > 0 and < 2"):
        RelaxedSinkhornAttention(relaxation=relaxation)


def inputs_for(dtype: torch.dtype = torch.float32, **shape) -> Inputs:
    device = "cuda" if GPU else "cpu"
    return make_inputs(**shape).map(lambda x: x.to(device)).map_tokens(lambda x: x.to(dtype))


def check(inputs: Inputs, **options) -> None:
    found = RELAXED(inputs, backend="triton", **options)[0]
    (expected,) = RELAXED(inputs.map(torch.Tensor.double), **options)
    assert relative_rms(found, expected) <= TOLERANCE[inputs.q.dtype]


@pytest.mark.slow
@fused
@pytest.mark.usefixtures("unwritten_is_nan", "heads")
@few_and_many_heads
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_iters", [1, 2, 3, 12])
def test_fused(num_iters, dtype):
    for relaxation in (0.7, 1.7):
        options = {"num_iters": num_iters, "relaxation": relaxation}
        check(inputs_for(dtype, batch=1, queries=33, keys=20, head_dim=16), **options)
        mask = torch.arange(20)[None].to("cuda" if GPU else "cpu") > 12
        inputs = inputs_for(dtype, batch=1, queries=20, head_dim=16)
        check(inputs, key_padding_mask=mask, **options)


@pytest.mark.slow
@fused
@pytest.mark.usefixtures("unwritten_is_nan", "heads")
@few_and_many_heads
@pytest.mark.parametrize("size", [2.0, 4.0, 11.0])
def test_fused_on_large_logits(size):
    """Logits reach several hundred: first updates move duals by more than float32 can scale."""
    inputs = inputs_for(batch=1, heads=2, queries=40, head_dim=16)
    inputs = replace(inputs, q=size * inputs.q, k=size * inputs.k)
    for num_iters in (2, 3, 5, 9, 20):
        check(inputs, num_iters=num_iters, relaxation=1.6)


@fused
@pytest.mark.parametrize("relaxation", [0.01, 0.05])
def test_fused_where_an_update_goes_hardly_anywhere(relaxation):
    inputs = inputs_for(batch=1, heads=1, queries=24, head_dim=16)
    inputs = replace(inputs, q=12 * inputs.q, k=12 * inputs.k)
    for num_iters in (3, 6):
        check(inputs, num_iters=num_iters, relaxation=relaxation)


@pytest.mark.slow
@fused
def test_fused_beyond_what_fits_into_registers():
    check(inputs_for(batch=1, heads=1, queries=140, head_dim=16))
    with routing.force("updates, then closure", "tiled"):
        check(inputs_for(batch=1, heads=2, queries=20, head_dim=16), num_iters=5)


@fused
def test_gradient():
    inputs = inputs_for(batch=1, heads=2, queries=20, head_dim=16)
    cotangents = tuple(y.to(inputs.q) for y in make_cotangents(RELAXED(inputs)))
    exact = inputs.map(torch.Tensor.double)
    _, found = RELAXED.run(inputs, cotangents, backend="triton")
    _, expected = RELAXED.run(exact, tuple(y.double() for y in cotangents))
    for name, gradient in found.items():
        assert relative_rms(gradient, expected[name]) <= 1e-4, name


@fused
@pytest.mark.parametrize("mask", [None, [[False] * 4 + [True]] * 2])
def test_custom_operator_is_registered_soundly(mask):
    x = inputs_for(queries=5)
    mask = None if mask is None else torch.tensor(mask, device=x.q.device)
    arguments = (x.q, x.k, x.v, mask, 3, 1.5, 0.5, "ieee")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.asap_exp.relaxed_sinkhorn.default, arguments, test_utils=tests)
