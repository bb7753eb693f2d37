"""The fused passes of coarse attention: the closure, and the attention pass with a bias."""

from dataclasses import replace

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from tests.ops.inputs import Inputs, Operator, make_inputs, relative_rms
from tests.ops.test_coarse import coarse_of
from tests.ops.test_fused_inference import (
    DEVICE,
    HUNDREDS,
    USUAL,
    assert_as_good_as_the_reference,
    inputs_for,
)

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
every_form = pytest.mark.parametrize("one_pass", [False, True], ids=["two-sided", "one pass"])


def coarse_operator(**fixed) -> Operator:
    call, fixed = coarse_of(ops.coarse_attention, **fixed)
    return Operator(call, ("q", "k", "v"), ((2,),), fixed)


@pytest.mark.parametrize("size", [USUAL, HUNDREDS], ids=["usual logits", "logits of some hundreds"])
@pytest.mark.parametrize("lengths", [(20, 20), (33, 20), (1, 1), (130, 130)], ids=str)
@every_form
def test_bfloat16(one_pass, lengths, size):
    queries, keys = lengths
    inputs = inputs_for(size, heads=1, queries=queries, keys=keys)
    assert_as_good_as_the_reference(coarse_operator(one_pass=one_pass), inputs)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 0.7])
@every_form
def test_any_scale_and_eps(one_pass, scale):
    inputs = inputs_for(queries=20)
    operator = coarse_operator(one_pass=one_pass, eps=0.6)
    assert_as_good_as_the_reference(operator, inputs, scale=scale)


@every_form
def test_padding(one_pass):
    inputs = inputs_for(queries=20, batch=3)
    mask = torch.arange(20) >= torch.tensor([[20], [7], [0]])
    mask = mask.to(inputs.q.device)
    operator = coarse_operator(one_pass=one_pass)
    assert_as_good_as_the_reference(operator, inputs, key_padding_mask=mask)
    spoilt = inputs.map_tokens(lambda x: padded_with_nan(x, mask))
    options = {"key_padding_mask": mask, "backend": "triton"}
    assert torch.equal(operator(spoilt, **options)[0], operator(inputs, **options)[0])


def padded_with_nan(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    shape = (len(mask), 1, mask.shape[1], *(1,) * (x.dim() - 3))
    return x.masked_fill(mask.view(shape), torch.nan)


def test_two_sided_form_has_a_fused_gradient_and_one_pass_refuses_it():
    inputs: Inputs = inputs_for(queries=20).map(torch.Tensor.float)
    operator = coarse_operator()
    expected, found = (operator.run(inputs, backend=name)[1] for name in ("reference", "triton"))
    for name, gradient in expected.items():
        assert relative_rms(found[name], gradient) < 1e-4
    leaf = replace(inputs, q=inputs.q.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="a gradient is needed, for which there is no fused"):
        coarse_operator(one_pass=True)(leaf, backend="triton")


@pytest.mark.parametrize("gradient", [False, True])
@every_form
def test_explained_is_what_runs(one_pass, gradient):
    inputs = inputs_for(queries=20).map(torch.Tensor.float)
    found = ops.explain(
        "coarse_attention",
        inputs.q,
        one_pass=one_pass,
        gradient=gradient,
        backend="triton",
    )
    if one_pass and gradient:
        assert found.taken == []
        assert "no fused kernel" in str(found)
        return
    with routes.recorded() as taken:
        q = inputs.q.requires_grad_(gradient)
        out = coarse_operator(one_pass=one_pass)(replace(inputs, q=q), backend="triton")[0]
        if gradient:
            out.sum().backward()
    assert set(found.taken) == set(taken)
    assert ("one_pass" in str(found).splitlines()[0]) == one_pass


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_map_with_a_coarse_dual_runs_its_slices_in_kernels(padded, refine):
    """The coarse dual itself is plain PyTorch, added to what the kernels compute."""
    x = make_inputs(batch=2, heads=2, queries=40, head_dim=16, value_dim=16, dtype=torch.float32)
    x = x.map(lambda t: t.to(DEVICE))
    mask = None
    if padded:
        mask = (torch.arange(40) >= torch.tensor([[33], [1]])).to(DEVICE)
    coarse = ops.CoarseSettings(8, "farthest", "voronoi", num_iters=5)
    weight = torch.tensor([[0.8], [1.1]], device=DEVICE)
    map = ops.SlicedMap(x.theta, x.weight, coarse_weight=weight, coarse=coarse)
    options = {"refine": refine, "key_padding_mask": mask}
    with routes.recorded() as taken, torch.no_grad():
        found = ops.map_attention(x.q, x.k, x.v, map, **options, backend="triton")
    assert ("sliced_dual", "kernels") in taken
    expected = ops.map_attention(x.q, x.k, x.v, map, **options, backend="reference")
    assert relative_rms(found, expected) < 1e-4
