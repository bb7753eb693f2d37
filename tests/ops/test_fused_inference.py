"""The fused operators on bfloat16 inputs without a gradient, which have their own kernels."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from tests.ops.cases import pairs_of
from tests.ops.inputs import ASAP, CLOSURE, SOFTMAX, TEACHER, Inputs, make_inputs, relative_rms

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
CUT_OFF = 0.0 if GPU else 2.0**-7
"""Additional error in Triton's interpreter, which truncates to bfloat16 instead of rounding."""
USUAL, HUNDREDS = 1.0, 11.0
SIZES = {"usual logits": USUAL, "logits of some hundreds": HUNDREDS}
KERNELS = ("on chip", "passes")


ON_CHIP = ["keys and values in registers", "plan in shared memory"]
PASSES = ["tiled, bfloat16", "tiled"]
"""The second route runs where the first cannot: if all logits are 0, or for a gradient."""


@pytest.fixture(params=KERNELS)
def kernels(request):
    """Run both kinds of kernels at every length that both can take."""
    with routes.force(*(ON_CHIP if request.param == "on chip" else []), *PASSES):
        yield


def inputs_for(size: float = USUAL, **shape) -> Inputs:
    inputs = make_inputs(**{"batch": 1, "heads": 2, "head_dim": 16, **shape})
    inputs = replace(inputs, q=size * inputs.q, k=size * inputs.k)
    return inputs.map(lambda x: x.to(DEVICE)).map_tokens(torch.Tensor.bfloat16)


def assert_as_good_as_the_reference(operator, inputs: Inputs, **options) -> None:
    """Allow at most twice the reference's error on the same bfloat16 inputs."""
    exact = operator(inputs.map(torch.Tensor.double), **options)[0]
    low = operator(inputs, backend="reference", **options)[0]
    found = operator(inputs, backend="triton", **options)[0]
    assert relative_rms(found, exact) <= 2 * relative_rms(low, exact) + 1e-6 + CUT_OFF


LENGTHS = [(1, 1), (17, 17), (70, 70), (33, 20), (20, 140)]
if GPU:
    LENGTHS += [(n, n) for n in (63, 64, 65, 100, 128, 129, 197, 256, 257, 1000, 1025, 4097)]
    LENGTHS += [(1000, 200), (129, 1025)]


@pytest.mark.slow
@pairs_of(lengths=LENGTHS, size=SIZES, kernels=KERNELS)
def test_teacher(lengths, size, kernels):
    queries, keys = lengths
    inputs = inputs_for(size, queries=queries, keys=keys)
    num_iters = 20 if GPU else 4
    assert_as_good_as_the_reference(TEACHER, inputs, num_iters=num_iters)


@pytest.mark.slow
@pairs_of(
    lengths=((150, 150), (40, 70), (70, 40)), size=(USUAL, 4.0, HUNDREDS, 30.0), kernels=KERNELS
)
def test_updates_after_which_the_plan_is_computed_anew(lengths, size, kernels):
    queries, keys = lengths
    inputs = inputs_for(size, heads=1, queries=queries, keys=keys)
    assert_as_good_as_the_reference(TEACHER, inputs, num_iters=14)


@pytest.mark.slow
def test_scalings_that_go_on_moving(kernels):
    """All queries but one attend to one key, so every update moves the duals by log(63).

    The logits are +-500. Over 40 updates, the scalings would overflow float32.
    """
    inputs = inputs_for(heads=1, queries=64)
    q, k = torch.zeros_like(inputs.q), torch.zeros_like(inputs.k)
    q[..., 0], k[..., 0] = 40.0, -50.0  # with the scale 1 / 4
    q[:, :, -1], k[:, :, 0] = -q[:, :, -1], -k[:, :, 0]
    assert_as_good_as_the_reference(TEACHER, replace(inputs, q=q, k=k), num_iters=40)


@pytest.mark.slow
@pytest.mark.parametrize("num_iters", [2, 5, 6, 9])
def test_any_number_of_updates(num_iters, kernels):
    inputs = inputs_for(4.0, queries=20)
    assert_as_good_as_the_reference(TEACHER, inputs, num_iters=num_iters)


@pairs_of(lengths=LENGTHS, size=SIZES, kernels=KERNELS)
def test_closure(lengths, size, kernels):
    queries, keys = lengths
    inputs = inputs_for(size, queries=queries, keys=keys)
    assert_as_good_as_the_reference(CLOSURE, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_any_scale(scale, kernels):
    inputs = inputs_for(queries=20)
    assert_as_good_as_the_reference(TEACHER, inputs, num_iters=4, scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 24, 64, *([50, 96, 128] if GPU else [])])
def test_any_width(width, kernels):
    inputs = inputs_for(queries=20, head_dim=width, value_dim=width)
    assert_as_good_as_the_reference(TEACHER, inputs, num_iters=4)


@pytest.mark.slow
@pytest.mark.parametrize("height", [40.0, 150.0], ids=["far", "beyond float32"])
def test_first_tile_that_tells_nothing_of_the_others(height, kernels):
    """The first tile determines the shift of the sums: here it is far too small or too large."""
    for sign in (1, -1):
        inputs = inputs_for(heads=1, queries=140, head_dim=16)
        dual = torch.zeros_like(inputs.row_dual)
        dual[..., 128:] = sign * height
        assert_as_good_as_the_reference(CLOSURE, replace(inputs, row_dual=dual))
        q = inputs.q.clone()
        q[:, :, 128:] *= height / 4
        assert_as_good_as_the_reference(CLOSURE, replace(inputs, q=q, row_dual=dual))


MASK = torch.tensor([[False] * 20, [False] + [True] * 19, [True] * 20, [True] * 7 + [False] * 13])


@pytest.mark.slow
@pairs_of(
    operator={"teacher": TEACHER, "closure": CLOSURE, "softmax": SOFTMAX, "asap": ASAP},
    size=SIZES,
    kernels=KERNELS,
)
def test_padding(operator, size, kernels):
    inputs = inputs_for(size, heads=1, batch=4, queries=20)
    mask = MASK.to(DEVICE)
    spoilt = replace(
        inputs,
        **{x: getattr(inputs, x).masked_fill(mask[:, None, :, None], torch.nan) for x in "qkv"},
    )
    options = {"key_padding_mask": mask}
    exact = operator(inputs.map(torch.Tensor.double), **options)[0]
    found = operator(spoilt, backend="triton", **options)[0]
    assert relative_rms(found, exact) < 4e-3 + CUT_OFF
    assert not found.masked_select(mask[:, None, :, None]).any()


# How the dual of an absent key is rounded depends on the scale, and on the GPU on other bits.
@pytest.mark.parametrize("scale", [0.25, 0.3])
@pytest.mark.parametrize("operator", [TEACHER, SOFTMAX], ids=["teacher", "softmax"])
def test_first_tile_without_a_token(operator, scale):
    """It tells nothing of the shift, and where sums are computed again, nothing of them."""
    inputs = inputs_for(HUNDREDS, heads=1, queries=140)
    options = {"key_padding_mask": torch.arange(140, device=DEVICE)[None] < 70, "scale": scale}
    with routes.force("tiled, bfloat16"):
        assert_as_good_as_the_reference(operator, inputs, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "operator", [TEACHER, CLOSURE, SOFTMAX], ids=["teacher", "closure", "softmax"]
)
@pytest.mark.parametrize("tokens", [150, *([64, 128, 192, 256, 320, 512] if GPU else [])])
def test_texts_of_several_lengths_in_a_batch(operator, tokens, kernels):
    """A text model has this many heads, more than run at once."""
    lengths = torch.tensor([tokens - 15, tokens, 1, tokens // 2] * (16 if GPU else 1))
    inputs = inputs_for(batch=len(lengths), heads=6 if GPU else 1, queries=tokens)
    mask = torch.arange(tokens) >= lengths[:, None]
    options: dict[str, Any] = {"key_padding_mask": mask.to(DEVICE)}
    if operator is TEACHER:
        options |= {"num_iters": 20 if GPU else 5}
    exact = operator(inputs.map(torch.Tensor.double), **options)[0]
    found = operator(inputs, backend="triton", **options)[0]
    assert relative_rms(found, exact) < 4e-3 + CUT_OFF


@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if GPU else [])])
def test_short_padded_softmax(dtype):
    inputs = inputs_for(batch=4, queries=20).map_tokens(lambda x: x.to(dtype))
    options = {"key_padding_mask": MASK.to(DEVICE)}
    exact = SOFTMAX(inputs.map(torch.Tensor.double), **options)[0]
    assert relative_rms(SOFTMAX(inputs, backend="triton", **options)[0], exact) < 4e-3


@pytest.mark.slow
def test_same_bits_twice(kernels):
    inputs = inputs_for(queries=70)
    first, second = (TEACHER(inputs, backend="triton")[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.slow
def test_a_gradient_takes_the_kernels_that_have_one(kernels):
    inputs = inputs_for(queries=20)
    out = ops.sinkhorn_attention(
        inputs.q.requires_grad_(), inputs.k, inputs.v, num_iters=3, backend="triton"
    )
    out.sum().backward()
    assert inputs.q.grad is not None
    assert inputs.q.grad.isfinite().all()
