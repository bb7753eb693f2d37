"""Plans in float16 with sums on the matrix units: of all tokens, and of a subset."""

from dataclasses import replace

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from tests.ops.inputs import Inputs, relative_rms
from tests.ops.test_fused_coarse import coarse_operator, every_form, padded_with_nan
from tests.ops.test_fused_inference import assert_as_good_as_the_reference, inputs_for

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes

ROUTE, OF_SUBSET = "half plan in registers", "sums on the matrix units"
BRAIN, HALF = torch.bfloat16, torch.float16

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


def dual_errors(inputs: Inputs, tokens: int, *, weights: str = "equal", **options) -> list[float]:
    """Return the largest errors of the duals of all queries and keys, in natural units."""
    q, k, mask = inputs.q, inputs.k, options.get("key_padding_mask")
    options |= {
        "subset": ops.choose_subset(q, tokens, weights=weights, key_padding_mask=mask),
        "key_subset": ops.choose_subset(k, tokens, weights=weights, key_padding_mask=mask),
    }
    exact = ops.coarse_duals(q.double(), k.double(), backend="reference", **options)
    with routes.force(OF_SUBSET), routes.recorded() as taken:
        found = ops.coarse_duals(q, k, backend="triton", **options)
    assert ("subset_updates", OF_SUBSET) in taken
    return [(x - y).abs().max().item() for x, y in zip(found, exact, strict=True)]


@pytest.mark.parametrize(
    ("lengths", "tokens"), [((64, 64), 64), ((100, 60), 40), ((200, 200), 128), ((3, 3), 2)]
)
@pytest.mark.parametrize("size", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_duals_of_a_subset(dtype, size, lengths, tokens):
    """Float16 rounds the entries of the plan by 2^-12, and what they are sums of by less."""
    queries, keys = lengths
    inputs = inputs_for(size, queries=queries, keys=keys).map_tokens(lambda x: x.to(dtype))
    assert max(dual_errors(inputs, tokens)) <= 8e-4


@pytest.mark.parametrize("num_iters", [2, 3, 5, 60])
def test_every_number_of_updates_on_a_subset(num_iters):
    inputs = inputs_for(4.0, queries=40)
    assert max(dual_errors(inputs, 20, num_iters=num_iters)) <= 8e-4


def uneven_groups() -> Inputs:
    """Make tokens of which few keys face many queries: updates go on moving their duals."""
    inputs = inputs_for(queries=64, head_dim=32)
    q, k = inputs.q.clone(), inputs.k.clone()
    for x, parts in ((q, (32, 16, 8, 8)), (k, (4, 8, 20, 32))):
        for group, tokens in enumerate(torch.arange(64).split(parts)):
            x[:, :, tokens, group] += 40.0
    return replace(inputs, q=q, k=k)


def test_duals_of_a_subset_that_go_far():
    far = uneven_groups()
    q, k = far.q.double(), far.k.double()
    duals = ops.coarse_duals(q, k, subset=ops.choose_subset(q, 64), backend="reference")
    assert duals.ready.std() > 20
    assert max(dual_errors(far, 64)) <= 8e-4


def test_weights_of_the_subset():
    inputs = inputs_for(2.0, queries=100)
    assert max(dual_errors(inputs, 30, weights="voronoi")) <= 8e-4


def test_padding_of_a_subset():
    inputs = inputs_for(2.0, queries=40, batch=4)
    mask = torch.arange(40) >= torch.tensor([[40], [13], [1], [0]])
    mask = mask.to(inputs.q.device)
    assert max(dual_errors(inputs, 20, key_padding_mask=mask)) <= 8e-4
    spoilt = inputs.map_tokens(lambda x: padded_with_nan(x, mask))
    assert max(dual_errors(spoilt, 20, key_padding_mask=mask)) <= 8e-4


@pytest.mark.parametrize("size", [1.0, 11.0])
@every_form
def test_output_of_coarse_attention(one_pass, size):
    inputs = inputs_for(size, queries=130)
    with routes.force(OF_SUBSET), routes.recorded() as taken:
        assert_as_good_as_the_reference(coarse_operator(one_pass=one_pass), inputs)
    assert ("subset_updates", OF_SUBSET) in taken


def assert_as_exact_as_in_float32(inputs: Inputs, **options) -> None:
    """Allow 2e-4 more than the error of the plan in float32."""
    q, k, v = inputs.q, inputs.k, inputs.v
    exact = ops.sinkhorn_attention(q.double(), k.double(), v.double(), **options)
    errors = {}
    for route in (ROUTE, "logits in registers"):
        with routes.force(route), routes.recorded() as taken:
            out = ops.sinkhorn_attention(q, k, v, backend="triton", **options)
        assert taken == [("sinkhorn", route)]
        errors[route] = relative_rms(out, exact)
    assert errors[ROUTE] <= errors["logits in registers"] + 2e-4


@pytest.mark.parametrize("lengths", [(1, 1), (17, 17), (64, 64), (33, 20), (20, 128), (128, 128)])
@pytest.mark.parametrize("size", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_output(dtype, size, lengths):
    queries, keys = lengths
    inputs = inputs_for(size, queries=queries, keys=keys)
    assert_as_exact_as_in_float32(inputs.map_tokens(lambda x: x.to(dtype)))


@pytest.mark.parametrize("num_iters", [2, 3, 60])
def test_every_number_of_updates(num_iters):
    assert_as_exact_as_in_float32(inputs_for(4.0, queries=40), num_iters=num_iters)


def test_duals_that_go_far():
    assert_as_exact_as_in_float32(uneven_groups())


@pytest.mark.parametrize("width", [32, 100, 128])
def test_width(width):
    assert_as_exact_as_in_float32(inputs_for(queries=40, head_dim=width, value_dim=width))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 0.7])
def test_any_scale(scale):
    assert_as_exact_as_in_float32(inputs_for(queries=20), scale=scale, eps=0.6)


def test_start():
    """Updates after a predicted dual begin with it."""
    operator = coarse_operator(refine=2)
    with routes.force(ROUTE), routes.recorded() as taken:
        assert_as_good_as_the_reference(operator, inputs_for(2.0, queries=40))
    assert ("sinkhorn", ROUTE) in taken


def test_padding():
    inputs = inputs_for(2.0, queries=40, batch=4)
    mask = torch.arange(40) >= torch.tensor([[40], [13], [1], [0]])
    mask = mask.to(inputs.q.device)
    assert_as_exact_as_in_float32(inputs, key_padding_mask=mask)
    spoilt = inputs.map_tokens(lambda x: padded_with_nan(x, mask))
    options = {"key_padding_mask": mask, "backend": "triton"}
    with routes.force(ROUTE):
        first, second = (ops.sinkhorn_attention(x.q, x.k, x.v, **options) for x in (inputs, spoilt))
    assert torch.equal(first, second)
