"""The closure in one launch, for bfloat16 heads whose keys and values fit on chip.

Outputs are NaN before the kernel writes them, so an entry that it omits fails the comparison.
"""

from dataclasses import replace

import pytest
import torch

from asap_exp.ops import backend
from tests.ops.inputs import CLOSURE, TEACHER, Inputs, relative_rms
from tests.ops.taken import Count
from tests.ops.test_fused_inference import (
    CUT_OFF,
    DEVICE,
    HUNDREDS,
    USUAL,
    assert_as_good_as_the_reference,
    inputs_for,
)

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes

ON_HOPPER = not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.usefixtures("unwritten_is_nan"),
    pytest.mark.skipif(not ON_HOPPER, reason="other GPUs take the closure in passes"),
]


@pytest.fixture(autouse=True)
def launches():
    """Count the closures that took one launch."""
    with routes.recorded() as taken:
        yield Count(taken, "keys and values in registers")


@pytest.mark.slow
@pytest.mark.parametrize("size", [USUAL, HUNDREDS], ids=["usual logits", "logits of some hundreds"])
@pytest.mark.parametrize(
    "lengths", [(129, 129), (197, 197), (256, 256), (140, 20), (20, 140)], ids=str
)
def test_every_length(lengths, size, launches):
    queries, keys = lengths
    inputs = inputs_for(size, heads=1, queries=queries, keys=keys)
    assert_as_good_as_the_reference(CLOSURE, inputs)
    assert_as_good_as_the_reference(TEACHER, inputs, num_iters=1)  # of the dual 0
    assert len(launches) == 2


@pytest.mark.parametrize("widths", [(1, 1), (5, 24), (64, 33)], ids=str)
@pytest.mark.parametrize("scale", [-0.3, 0.0, None])
def test_any_width_and_scale(widths, scale, launches):
    head_dim, value_dim = widths
    inputs = inputs_for(heads=1, queries=130, head_dim=head_dim, value_dim=value_dim)
    assert_as_good_as_the_reference(CLOSURE, inputs, scale=scale)
    assert len(launches) == (scale != 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [129, 150])
def test_rows_and_columns_of_all_sizes(queries, launches):
    """The dual is far from any plan's, so that both kinds of sums are recomputed."""
    inputs = inputs_for(4.0, queries=queries)
    dual = torch.linspace(-400, 400, queries, device=DEVICE).expand_as(inputs.row_dual)
    assert_as_good_as_the_reference(CLOSURE, replace(inputs, row_dual=dual))
    assert_as_good_as_the_reference(CLOSURE, replace(inputs, row_dual=dual.flip(-1)))
    assert len(launches) == 2


def masks(tokens: int) -> torch.Tensor:
    """Return masks: none, the last 40, all but one, the first 70 (a block of queries), all."""
    place = torch.arange(tokens)
    return torch.stack([place < 0, place > 99, place != 130, place < 70, place >= 0]).to(DEVICE)


@pytest.mark.slow
def test_padding(launches):
    inputs, mask = inputs_for(batch=5, heads=1, queries=140), masks(140)
    spoilt = inputs.map_tokens(torch.Tensor.clone)
    for x in (spoilt.q, spoilt.k, spoilt.v, spoilt.row_dual):
        x.transpose(1, 2)[mask] = torch.nan
    exact = CLOSURE(inputs.map(torch.Tensor.double), key_padding_mask=mask)[0]
    found, clean = (
        CLOSURE(x, backend="triton", key_padding_mask=mask)[0] for x in (spoilt, inputs)
    )
    assert relative_rms(found, exact) < 4e-3 + CUT_OFF
    assert not found.transpose(1, 2)[mask].any()
    assert torch.equal(found, clean)
    assert len(launches) == 2


def test_views_of_one_projection(launches):
    inputs = inputs_for(batch=2, queries=130)
    qkv = torch.randn(2, 130, 3, 2, 16, device=DEVICE, dtype=torch.bfloat16).unbind(2)
    q, k, v = (x.transpose(1, 2) for x in qkv)
    assert_as_good_as_the_reference(CLOSURE, replace(inputs, q=q, k=k, v=v))
    assert len(launches) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [{"queries": 128}, {"queries": 257}, {"value_dim": 65}, {"head_dim": 65}], ids=str
)
def test_what_does_not_fit_takes_passes(shape, launches):
    inputs: Inputs = inputs_for(**{"heads": 1, "queries": 129, "head_dim": 2} | shape)
    assert_as_good_as_the_reference(CLOSURE, inputs)
    assert not launches
