"""The kernels of coarse attention: the subset's updates, its extension, the passes, gradients."""

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

import triton
from triton.runtime.interpreter import InterpretedFunction

from asap_exp.ops import routes

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
every_form = pytest.mark.parametrize("one_pass", [False, True], ids=["two-sided", "one pass"])


@pytest.fixture
def counted_launches(monkeypatch) -> list[str]:
    """Names of the kernels that are launched, in order."""
    launches: list[str] = []
    for kernel in (InterpretedFunction, triton.runtime.JITFunction):

        def counted(self, *args, run=kernel.run, **options):
            launches.append(self.fn.__name__)
            return run(self, *args, **options)

        monkeypatch.setattr(kernel, "run", counted)
    return launches


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


# How the dual of an absent key is rounded depends on the scale, and on the GPU on other bits.
@pytest.mark.parametrize("scale", [0.25, 0.3])
@pytest.mark.parametrize("first", [0, 150], ids=["far below", "padded"])
def test_one_pass_whose_first_keys_say_nothing_of_the_later_ones(first, scale):
    inputs = inputs_for(8.0, heads=1, queries=300, batch=2)
    small = torch.where(torch.arange(300, device=DEVICE) < 150, 1e-3, 1.0)[:, None]
    inputs = replace(inputs, k=(inputs.k * small).bfloat16())
    mask = torch.arange(300, device=DEVICE).expand(2, 300) < first
    operator = coarse_operator(one_pass=True)
    with routes.force("tiled, bfloat16"):
        assert_as_good_as_the_reference(operator, inputs, key_padding_mask=mask, scale=scale)


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


SHAPES = {
    "square": {"queries": 20},
    "short": {"queries": 3},
    "more queries": {"queries": 70, "keys": 20},
    "more keys": {"queries": 20, "keys": 150},
}


@pytest.mark.parametrize("num_iters", [1, 2, 12])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@every_form
def test_gradient(one_pass, shape, num_iters):
    inputs: Inputs = inputs_for(**shape).map(torch.Tensor.float)
    operator = coarse_operator(one_pass=one_pass, num_iters=num_iters)
    assert_same_gradients(operator, inputs)


REFINED = {"through all": {"refine": 2}, "implicit": {"refine": 1, "implicit_steps": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", REFINED.values(), ids=REFINED)
def test_gradient_with_further_updates(options, shape):
    inputs: Inputs = inputs_for(**shape).map(torch.Tensor.float)
    assert_same_gradients(coarse_operator(num_iters=3, **options), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("options", REFINED.values(), ids=REFINED)
def test_gradient_with_further_updates_and_padding(options):
    inputs = inputs_for(queries=20, batch=3).map(torch.Tensor.float)
    mask = (torch.arange(20) >= torch.tensor([[20], [7], [0]])).to(inputs.q.device)
    operator = coarse_operator(num_iters=3, **options)
    found = assert_same_gradients(operator, inputs, key_padding_mask=mask)
    spoilt = inputs.map_tokens(lambda x: padded_with_nan(x, mask))
    again = operator.run(spoilt, backend="triton", key_padding_mask=mask)[1]
    assert all(torch.equal(again[name], found[name]) for name in found)


@pytest.mark.parametrize("size", [USUAL, HUNDREDS], ids=["usual logits", "logits of some hundreds"])
@pytest.mark.parametrize("lengths", [(20, 20), (33, 20)], ids=str)
def test_further_updates_without_a_gradient(lengths, size):
    queries, keys = lengths
    inputs = inputs_for(size, heads=1, queries=queries, keys=keys)
    for options in REFINED.values():
        assert_as_good_as_the_reference(coarse_operator(**options), inputs)


@pytest.mark.parametrize("size", [3.0, 11.0])
@every_form
def test_gradient_of_large_logits(one_pass, size):
    inputs: Inputs = inputs_for(size, queries=40).map(torch.Tensor.float)
    assert_same_gradients(coarse_operator(one_pass=one_pass, num_iters=6), inputs, most=1e-3)


@every_form
def test_gradient_with_padding(one_pass):
    inputs = inputs_for(queries=20, batch=3).map(torch.Tensor.float)
    mask = (torch.arange(20) >= torch.tensor([[20], [7], [0]])).to(inputs.q.device)
    operator = coarse_operator(one_pass=one_pass, num_iters=4)
    found = assert_same_gradients(operator, inputs, key_padding_mask=mask)
    spoilt = inputs.map_tokens(lambda x: padded_with_nan(x, mask))
    again = operator.run(spoilt, backend="triton", key_padding_mask=mask)[1]
    for name, gradient in again.items():
        assert torch.equal(gradient, found[name]), name
        assert not gradient[2].any(), "a sample without a valid token"


@every_form
def test_padded_tokens_of_a_subset_weigh_nothing(one_pass):
    inputs = inputs_for(queries=20, batch=2).map(torch.Tensor.float)
    mask = (torch.arange(20) >= torch.tensor([[20], [9]])).to(inputs.q.device)

    def call(q, k, v, **options):
        tokens = torch.arange(4, 16, device=q.device)[None, None]
        subset = ops.Subset(tokens, 1.0 + tokens.float())
        return ops.coarse_attention(q, k, v, subset=subset, **options)

    operator = Operator(call, ("q", "k", "v"), ((2,),), {"one_pass": one_pass, "num_iters": 3})
    assert_same_gradients(operator, inputs, key_padding_mask=mask)
    exact = operator(inputs.map(torch.Tensor.double), key_padding_mask=mask)[0]
    found = operator(inputs, backend="triton", key_padding_mask=mask)[0]
    assert relative_rms(found.double(), exact) < 1e-5


def assert_same_gradients(operator, inputs, most=1e-4, **options) -> dict[str, torch.Tensor]:
    """Compare with the reference in float64."""
    expected = operator.run(inputs.map(torch.Tensor.double), **options)[1]
    found = operator.run(inputs, backend="triton", **options)[1]
    for name, gradient in expected.items():
        if gradient.any():
            assert relative_rms(found[name].double(), gradient) < most, name
        else:
            assert not found[name].any(), name
    return found


CHOSEN = {
    "wide": {"count": 100, "choice": "sequence"},
    "one": {"count": 1, "choice": "sequence"},
    "fewer than asked for": {"count": 40, "choice": "kmeans", "weights": "voronoi"},
    "too many for registers": {"count": 140, "choice": "random", "seed": 3},
}


@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN)
@every_form
def test_any_subset(one_pass, chosen):
    inputs: Inputs = inputs_for(queries=150).map(torch.Tensor.float)

    def call(q, k, v, **options):
        subset = ops.choose_subset(k, **chosen)
        return ops.coarse_attention(q, k, v, subset=subset, **options)

    fixed = {"one_pass": one_pass, "num_iters": 3}
    operator = Operator(call, ("q", "k", "v"), ((2,),), fixed)
    assert_same_gradients(operator, inputs)
    exact = operator(inputs.map(torch.Tensor.double))[0]
    with torch.no_grad():
        found = operator(inputs, backend="triton")[0]
    assert relative_rms(found.double(), exact) < 1e-5


def duals_operator(**fixed) -> Operator:
    call, fixed = coarse_of(ops.coarse_duals, **fixed)
    return Operator(call, ("q", "k"), ((2,), (2,)), fixed)


@pytest.mark.parametrize("num_iters", [1, 2, 12])
@pytest.mark.parametrize("lengths", [(20, 20), (33, 150)], ids=str)
def test_duals(lengths, num_iters):
    queries, keys = lengths
    inputs: Inputs = inputs_for(queries=queries, keys=keys).map(torch.Tensor.float)
    operator = duals_operator(num_iters=num_iters)
    exact = operator(inputs.map(torch.Tensor.double))
    for found, expected in zip(operator(inputs, backend="triton"), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    if num_iters > 1:  # else the dual of the queries is the constant 0
        assert_same_gradients(operator, inputs)


def test_duals_with_padding():
    inputs = inputs_for(queries=20, batch=3).map(torch.Tensor.float)
    mask = (torch.arange(20) >= torch.tensor([[20], [7], [0]])).to(inputs.q.device)
    operator = duals_operator(num_iters=4)
    found = assert_same_gradients(operator, inputs, key_padding_mask=mask)
    spoilt = inputs.map_tokens(lambda x: padded_with_nan(x, mask))
    again = operator.run(spoilt, backend="triton", key_padding_mask=mask)[1]
    assert all(torch.equal(again[name], found[name]) for name in ("q", "k"))


@pytest.mark.parametrize(("which", "num_iters"), [(0, 5), (1, 5), (1, 1)])
def test_gradient_of_one_of_both_duals(which, num_iters):
    inputs = inputs_for(queries=20).map(torch.Tensor.float)
    call, fixed = coarse_of(ops.coarse_duals, num_iters=num_iters)
    operator = Operator(lambda *x, **o: call(*x, **o)[which], ("q", "k"), ((2,),), fixed)
    assert_same_gradients(operator, inputs)


def test_both_duals_take_one_run_of_the_updates(counted_launches):
    inputs = inputs_for(queries=20).map(torch.Tensor.float)
    subset = ops.choose_subset(inputs.k, 8)
    q, k = inputs.q.requires_grad_(), inputs.k.requires_grad_()
    counted_launches.clear()
    with routes.recorded() as taken:
        ready, col = ops.coarse_duals(q, k, subset=subset, num_iters=5, backend="triton")
    assert taken == [("coarse_dual", "subset in registers")]
    assert sorted(counted_launches) == ["extension_kernel", "extension_kernel", "updates_kernel"]
    counted_launches.clear()
    (ready.sum() + 2 * col.square().sum()).backward()
    assert counted_launches.count("gradient_kernel") == 1
    assert len(counted_launches) == 5, "and on either side those of all tokens and of the subset"


@pytest.mark.parametrize(
    ("one_pass", "n", "most"), [(True, 300, 3), (True, 150, 3), (False, 300, 4), (False, 150, 4)]
)
def test_launches_are_few(counted_launches, one_pass, n, most):
    inputs = inputs_for(queries=n)
    subset = ops.choose_subset(inputs.k, 16)
    counted_launches.clear()
    with torch.no_grad(), routes.force("keys and values in registers", "tiled, bfloat16"):
        ops.coarse_attention(
            inputs.q, inputs.k, inputs.v, subset=subset, one_pass=one_pass, backend="triton"
        )
    assert 0 < len(counted_launches) <= most


FORMS = {
    "two-sided": {},
    "one pass": {"one_pass": True},
    "implicit": {"implicit_steps": 2},
    "implicit, refined": {"implicit_steps": 2, "refine": 2},
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_explained_is_what_runs(form, gradient):
    inputs = inputs_for(queries=20).map(torch.Tensor.float)
    options = FORMS[form]
    found = ops.explain(
        "coarse_attention", inputs.q, gradient=gradient, backend="triton", **options
    )
    with routes.recorded() as taken:
        q = inputs.q.requires_grad_(gradient)
        out = coarse_operator(**options)(replace(inputs, q=q), backend="triton")[0]
        if gradient:
            out.sum().backward()
    assert set(found.taken) == set(taken)
    for option in ("one_pass", "implicit_steps"):
        assert (option in str(found).splitlines()[0]) == (option in options)


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
