"""The fused potentials and dual against the reference in float64, in Triton's interpreter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from asap_exp.ops import SlicedMap, reference
from tests.ops.cases import pairs_of
from tests.ops.inputs import OPERATORS, make_inputs, relative_rms

pytest.importorskip("triton")
from asap_exp.ops import routes
from asap_exp.ops.backend import INTERPRETED
from asap_exp.ops.kernels.asap import dual

sliced_dual: Callable[..., Tensor] = dual.sliced_dual


def reference_dual(q: Tensor, k: Tensor, *tensors: Tensor | None, **options: Any) -> Tensor:
    """Compute the dual of the map with these `tensors`."""
    return reference.asap.sliced_dual(q, k, SlicedMap(*tensors), **options)


DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU, and no interpreter"
)

OPTIONS: dict[str, Any] = {"eps": 0.7, "scale": 0.4, "key_padding_mask": None}
# The interpreter projects bfloat16 inputs by products of float32.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 1e-3, torch.bfloat16: 1e-3}

# Words of 64 and of 32 bits: in the interpreter bfloat16 is sorted as float16 is.
WIDTHS = list(TOLERANCE)[: 2 if INTERPRETED else 3]
every_width = pytest.mark.parametrize("dtype", WIDTHS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def inputs_of(tokens: int, dtype: torch.dtype, *, batch: int = 1, heads: int = 1, **options):
    """Make q and k in `dtype`; theta, weight and query_weight in float32."""
    shape = {"batch": batch, "heads": heads, "queries": tokens}
    inputs = make_inputs(dtype=torch.float32, **shape, **options)
    return inputs.map(lambda x: x.to(DEVICE)).map_tokens(lambda x: x.to(dtype))


def check(inputs, **changed) -> tuple[Tensor, Tensor]:
    """Return the potentials and the dual, both checked against the reference."""
    exact = inputs.map(lambda x: x.double())
    options = OPTIONS | changed
    phi = dual.sliced_potentials(inputs.q, inputs.k, inputs.theta, **options)
    expected = reference.sliced_potentials(exact.q, exact.k, exact.theta, **options)
    assert_close(phi, expected, inputs.q.dtype)
    f_hat = sliced_dual(*dual_arguments(inputs), **options)
    expected = reference_dual(*dual_arguments(exact), None, **options)
    assert_close(f_hat, expected, inputs.q.dtype)
    adaptive = sliced_dual(*adaptive_arguments(inputs), **options)
    expected = reference_dual(*adaptive_arguments(exact), None, **options)
    assert_close(adaptive, expected, inputs.q.dtype)
    return phi, f_hat


def dual_arguments(x) -> Any:
    return x.q, x.k, x.theta, x.weight, x.query_weight, None


def adaptive_arguments(x) -> Any:
    return x.q, x.k, x.theta, x.weight, x.query_weight, x.adaptive_weight


def assert_close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == torch.float32
    assert result.shape == expected.shape
    error = (result - expected).abs().max()
    assert error <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.slow
@pairs_of(
    tokens=(1, 2, 17, 64, 65) if INTERPRETED else (1, 2, 17, 63, 64, 65),
    names={"as chosen": (), "groups": ("groups of slices",)},
    dtype=tuple(TOLERANCE),
)
def test_agrees_with_the_reference(tokens, names, dtype):
    with routes.force(*names):
        check(inputs_of(tokens, dtype, heads=2))


@pytest.mark.slow
@every_width
@pytest.mark.parametrize(
    ("tokens", "slices"),
    [(70, 4), *((n, 128) for n in (64, 128, 192, 256, 320, 512) if not INTERPRETED)],
)
def test_texts_of_several_lengths_in_a_batch(tokens, slices, dtype):
    lengths = torch.tensor([tokens - 15, tokens, 1, tokens // 2])
    inputs = inputs_of(tokens, dtype, batch=4, slices=slices)
    mask = torch.arange(tokens) >= lengths[:, None]
    check(inputs, key_padding_mask=mask.to(DEVICE))


@pytest.mark.slow
@every_width
def test_rows_of_several_warps(dtype):
    check(inputs_of(1025, dtype, slices=1))


@every_dtype
def test_dual_without_query_weight(dtype):
    inputs = inputs_of(17, dtype, batch=2)
    *arguments, _, _ = dual_arguments(inputs)
    f_hat = sliced_dual(*arguments, None, None, **OPTIONS)
    *arguments, _, _ = dual_arguments(inputs.map(lambda x: x.double()))
    assert_close(f_hat, reference_dual(*arguments, None, None, None, **OPTIONS), dtype)


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize(("slices", "head_dim"), [(1, 3), (2, 8), (5, 17), (17, 16)])
def test_any_number_of_slices_and_channels(slices, head_dim, dtype):
    check(inputs_of(20, dtype, slices=slices, head_dim=head_dim))


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("tokens", [19, 5000])
def test_query_features_without_slices(tokens, dtype):
    inputs = inputs_of(tokens, dtype, slices=0)
    mask = torch.arange(tokens, device=DEVICE)[None] > tokens - 4
    options = OPTIONS | {"key_padding_mask": mask}
    f_hat = sliced_dual(*dual_arguments(inputs), **options)
    exact = dual_arguments(inputs.map(lambda x: x.double()))
    assert f_hat.abs().max() > 0
    assert_close(f_hat, reference_dual(*exact, None, **options), dtype)


@pytest.mark.slow
@every_dtype
def test_slices_of_a_head_in_several_programs(dtype):
    """One program sorts 4 KiB: 32 slices of 16-bit tokens as long as these, 16 of float32."""
    with routes.force("groups of slices"):
        check(inputs_of(20, dtype, slices=37))


@pytest.mark.slow
def test_row_across_a_whole_warp():
    check(inputs_of(512, torch.float16, slices=1))


MASKS = {
    "all but one": [[True] * 6 + [False] + [True] * 12],
    "first": [[True] * 5 + [False] * 14],
    "last, all, none": [[False] * 12 + [True] * 7, [True] * 19, [False] * 19],
}


SORTS = {
    "torch": ["torch.sort"],
    "groups": ["groups of slices"],
    "one program": ["one program per head", "groups of slices"],
}


@pytest.mark.slow
@pairs_of(mask=MASKS, names=SORTS, dtype=tuple(TOLERANCE))
def test_padded_tokens_are_zero_and_change_nothing(mask, names, dtype):
    mask = torch.tensor(mask, device=DEVICE)
    inputs = inputs_of(19, dtype, batch=len(mask))
    inputs.q.masked_fill_(mask[:, None, :, None], torch.nan)
    inputs.k.masked_fill_(mask[:, None, :, None], torch.inf)
    with routes.force(*names):
        phi, f_hat = check(inputs, key_padding_mask=mask)
    assert not phi.masked_select(mask[:, None, None, :]).any()
    assert not f_hat.masked_select(mask[:, None, :]).any()


@every_dtype
@pytest.mark.parametrize("slices", [1, 3])
def test_tokens_beyond_the_sort_of_one_program(slices, dtype):
    with routes.force("torch.sort"):
        check(inputs_of(130, dtype, slices=slices))


@pytest.mark.slow
@every_dtype
def test_views_of_one_projection(dtype):
    tokens, heads, width = 18, 2, 8
    qkv = torch.randn(2, tokens, 3, heads, width, generator=torch.Generator().manual_seed(0))
    q, k, _ = qkv.to(DEVICE, dtype).permute(2, 0, 3, 1, 4)
    inputs = inputs_of(tokens, dtype, heads=heads, head_dim=width)
    check(type(inputs)(**vars(inputs) | {"q": q, "k": k}))


def test_last_dimension_with_gaps_and_transposed_directions():
    inputs = inputs_of(18, torch.float16, head_dim=8)
    gaps = {name: getattr(inputs, name).repeat_interleave(2, -1)[..., ::2] for name in ("q", "k")}
    theta = inputs.theta.mT.contiguous().mT
    check(type(inputs)(**vars(inputs) | gaps | {"theta": theta}))


@every_dtype
def test_equal_queries_have_potential_zero(dtype):
    inputs = inputs_of(20, dtype)
    inputs.q[:] = inputs.q[:, :, :1].clone()
    phi = dual.sliced_potentials(inputs.q, inputs.k, inputs.theta, **OPTIONS)
    assert phi.abs().max() < 1e-6


@every_dtype
def test_ties(dtype):
    inputs = inputs_of(33, dtype)
    inputs.q.round_()
    inputs.k.round_()
    inputs.theta[:] = torch.eye(4)[:3]
    check(inputs)


@every_dtype
def test_queries_far_from_the_origin(dtype):
    inputs = inputs_of(64, dtype)
    inputs.q.add_(100.0)
    check(inputs)


@every_dtype
def test_negative_scale(dtype):
    check(inputs_of(17, dtype), scale=-0.4)


def test_no_samples():
    inputs = inputs_of(5, torch.float32).map_tokens(lambda x: x[:0])
    phi = dual.sliced_potentials(inputs.q, inputs.k, inputs.theta, **OPTIONS)
    assert phi.shape == (0, 1, 3, 5)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, torch.tensor([[False] * 4 + [True]])])
def test_operators_are_well_formed_for_the_compiler(mask):
    inputs = inputs_of(5, torch.float32)
    mask = None if mask is None else mask.to(DEVICE)
    q, k, theta = inputs.q, inputs.k, inputs.theta
    tests = ("test_schema", "test_faketensor")
    operators = torch.ops.asap_exp
    torch.library.opcheck(operators.sliced_potentials, (q, k, theta, mask, 1.0), test_utils=tests)
    arguments = (*dual_arguments(inputs), mask, 1.0)
    torch.library.opcheck(operators.sliced_dual, arguments, test_utils=tests)


def test_no_slices_at_all():
    inputs = make_inputs(queries=9, slices=1).map(lambda x: x.to(DEVICE))
    inputs = replace(inputs, theta=inputs.theta[:, :0], weight=inputs.weight[:, :0])
    operator = OPERATORS["predicted_dual"]
    (found,) = operator(inputs.map(torch.Tensor.float), backend="triton", refine=0)
    (exact,) = operator(inputs, refine=0)
    assert relative_rms(found, exact) < 1e-5
