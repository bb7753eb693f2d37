"""The implicit gradient by the kernels, compared with the reference in float64."""

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from tests.ops.inputs import TEACHER, make_inputs, relative_rms
from tests.ops.test_fused_inference import DEVICE, HUNDREDS, USUAL, inputs_for

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from tests.ops.test_fused_coarse import assert_same_gradients, padded_with_nan

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
SHAPES = {
    "square": {"queries": 20},
    "one token": {"queries": 1},
    "more queries": {"queries": 70, "keys": 20},
    "more keys": {"queries": 20, "keys": 150},
}


@pytest.mark.slow
@pytest.mark.parametrize(("num_iters", "steps"), [(1, 2), (4, 1), (4, 6)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradient(shape, num_iters, steps):
    inputs = inputs_for(**shape).map(torch.Tensor.float)
    assert_same_gradients(TEACHER, inputs, num_iters=num_iters, implicit_steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("size", [USUAL, 3.0])
def test_bfloat16_is_as_near_as_the_gradient_through_one_update(size):
    inputs = inputs_for(size, queries=40)
    errors = []
    for options in ({"gradient_updates": 1}, {"implicit_steps": 4}):
        expected = TEACHER.run(inputs.map(torch.Tensor.double), num_iters=5, **options)[1]
        found = TEACHER.run(inputs, num_iters=5, backend="triton", **options)[1]
        errors.append(max(relative_rms(found[name], expected[name]) for name in TEACHER.reads))
    assert errors[1] < 1.5 * errors[0] < 0.03


@pytest.mark.slow
def test_logits_of_hundreds():
    inputs = inputs_for(HUNDREDS, queries=40).map(torch.Tensor.float)
    found = TEACHER.run(inputs, num_iters=5, implicit_steps=5, backend="triton")[1]
    expected = TEACHER.run(inputs, num_iters=5, implicit_steps=5, backend="reference")[1]
    exact = TEACHER.run(inputs.map(torch.Tensor.double), num_iters=5, implicit_steps=5)[1]
    for name in TEACHER.reads:
        error, usual = (relative_rms(x[name], exact[name]) for x in (found, expected))
        # Five steps amplify how logits are rounded, which differs from CPU to CPU.
        assert error <= 6 * usual + 1e-5


@pytest.mark.slow
def test_padding():
    inputs = inputs_for(queries=20, batch=3).map(torch.Tensor.float)
    mask = (torch.arange(20) >= torch.tensor([[20], [7], [0]])).to(inputs.q.device)
    options = {"num_iters": 4, "implicit_steps": 3, "key_padding_mask": mask}
    found = assert_same_gradients(TEACHER, inputs, **options)
    spoilt = inputs.map_tokens(lambda x: padded_with_nan(x, mask))
    again = TEACHER.run(spoilt, backend="triton", **options)[1]
    for name, gradient in again.items():
        assert torch.equal(gradient, found[name]), name
        assert not gradient[2].any(), "a sample without a valid token"


def test_output_is_that_without_a_gradient():
    inputs = inputs_for(queries=20)
    plain = TEACHER(inputs, num_iters=5, implicit_steps=2, backend="triton")[0]
    (found,), _ = TEACHER.run(inputs, num_iters=5, implicit_steps=2, backend="triton")
    torch.testing.assert_close(found, plain, rtol=0, atol=0.02)
    assert torch.equal(plain, TEACHER(inputs, num_iters=5, backend="triton")[0])


def test_gradient_of_empty_batch():
    inputs = inputs_for(queries=5).map_tokens(lambda x: x[:0])
    found = TEACHER.run(inputs, implicit_steps=2, backend="triton")[1]
    assert {name: x.shape for name, x in found.items()} == {
        name: getattr(inputs, name).shape for name in TEACHER.reads
    }


@pytest.mark.slow
def test_compiled_without_a_graph_break():
    inputs = inputs_for(batch=1, queries=20, head_dim=8).map(torch.Tensor.float)

    def loss(q, k, v):
        out = ops.sinkhorn_attention(q, k, v, num_iters=3, implicit_steps=2, backend="triton")
        return out.square().sum()

    leaves = [x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiler = "inductor" if torch.cuda.is_available() else "aot_eager"
    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    found = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_nothing_of_the_plans_size_is_kept():
    inputs = make_inputs(batch=1, heads=1, queries=300, head_dim=8, value_dim=8)
    kept = []

    def pack(x):
        kept.append(x.numel())
        return x

    q, k, v = (getattr(inputs, name).float().to(DEVICE).requires_grad_() for name in TEACHER.reads)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ops.sinkhorn_attention(q, k, v, num_iters=2, implicit_steps=2, backend="triton")
    assert kept
    assert max(kept) <= 300 * 8
