"""Fused maps of one pass against the reference in float64: on a GPU, else in the interpreter."""

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import CoarseSettings, SlicedMap, map_attention
from tests.ops.inputs import Inputs, make_inputs, relative_rms
from tests.ops.test_one_pass_map import ONE_PASS, inputs_of_call, map_of

pytest.importorskip("triton")
from asap_exp.ops import routes
from asap_exp.ops.backend import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.usefixtures("unwritten_is_nan"),
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU, and no interpreter"
    ),
]

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def inputs_for(tokens: int, dtype: torch.dtype = torch.float32) -> Inputs:
    inputs = make_inputs(queries=tokens, heads=2, head_dim=16, dtype=torch.float32)
    return inputs.map(lambda x: x.to(DEVICE)).map_tokens(lambda x: x.to(dtype))


def with_coarse(inputs: Inputs) -> SlicedMap:
    weight = torch.full((len(inputs.theta), 1), 0.7).to(inputs.theta)
    settings = CoarseSettings(8, num_iters=4)
    return map_of(inputs, coarse_weight=weight, coarse=settings, one_pass=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [2, 17, 70])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_agrees_with_the_reference(tokens, dtype, padded):
    inputs = inputs_for(tokens, dtype)
    mask = torch.arange(tokens, device=DEVICE).expand(2, tokens) > tokens // 2
    options = {"key_padding_mask": mask if padded else None, "eps": 0.8}
    map = with_coarse(inputs)
    found = map_attention(*inputs_of_call(inputs), map, backend="triton", **options)
    exact = inputs.map(torch.Tensor.double)
    expected = map_attention(*inputs_of_call(exact), with_coarse(exact), **options)
    assert found.dtype == dtype
    assert relative_rms(found, expected) <= TOLERANCE[dtype]


def test_gradients_are_those_of_the_reference():
    inputs = inputs_for(20)
    _, found = ONE_PASS.run(inputs, backend="triton")
    _, expected = ONE_PASS.run(inputs.map(torch.Tensor.double))
    for name, gradient in found.items():
        assert relative_rms(gradient, expected[name]) < 1e-4, name


def test_routes_that_run_are_those_that_explain_names():
    inputs = inputs_for(20)
    map = SlicedMap(inputs.theta, inputs.weight, one_pass=True)
    with routes.recorded() as taken:
        map_attention(*inputs_of_call(inputs), map, backend="triton")
    explained = ops.explain(
        "asap_attention", *inputs_of_call(inputs), one_pass=True, slices=3, backend="triton"
    )
    assert list(taken) == explained.taken
    operators = ["asap", "sliced_dual", "dual_sort", "attention_pass"]
    assert [each.operator for each in taken] == operators
    assert "the map is of one pass" in str(explained)
