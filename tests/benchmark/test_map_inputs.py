"""Weights and duals that methods are timed with: fitted to the recorded inputs if any."""

import pytest
import torch

import asap_exp.benchmark.benchmark  # noqa: F401  (registers the methods)
from asap_exp.benchmark.inputs import Inputs
from asap_exp.benchmark.map_inputs import given_duals, map_weights
from asap_exp.benchmark.measure import measure
from asap_exp.benchmark.registry import Setting, build
from asap_exp.benchmark.shape import Shape
from asap_exp.calibration.ridge import centred
from asap_exp.core.records.benchmark import TEACHER_UPDATES
from asap_exp.ops import map_dual, sinkhorn_duals

SHAPE = Shape(batch=6, heads=2, n=16, head_dim=8)


@pytest.fixture
def recorded() -> Setting:
    """Make logits of some tens, with keys away from queries, so that there is a dual to predict."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(SHAPE.size, generator=generator) for _ in range(3))
    inputs = Inputs(4 * q, 4 * k + 2, v)
    return Setting(SHAPE, torch.device("cpu"), "reference", seed=0, recorded=inputs)


def random_setting() -> Setting:
    return Setting(SHAPE, torch.device("cpu"), "reference", seed=0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_map_of_recorded_inputs_predicts_their_dual(recorded: Setting, adaptive: bool) -> None:
    assert recorded.recorded is not None
    q, k, _ = recorded.recorded.qkv
    dual = centred(sinkhorn_duals(q, k, num_iters=TEACHER_UPDATES).ready, None)

    def missed(setting: Setting) -> float:
        weights = map_weights(setting, 4, adaptive=adaptive)
        assert (weights.adaptive_weight is not None) == adaptive
        found = centred(map_dual(q, k, weights), None)
        return ((found - dual).square().sum() / dual.square().sum()).item()

    assert missed(recorded) < 0.25
    assert missed(random_setting()) > 0.5


def test_given_duals_are_the_teachers_of_recorded_inputs(recorded: Setting) -> None:
    assert recorded.recorded is not None
    q, k, _ = recorded.recorded.qkv
    expected = sinkhorn_duals(q, k, num_iters=TEACHER_UPDATES)
    found = given_duals(recorded)
    torch.testing.assert_close(found.row, expected.ready)
    torch.testing.assert_close(found.col, expected.col)


def test_given_duals_of_random_inputs_are_those_of_any_sample() -> None:
    found = given_duals(random_setting())
    assert torch.equal(found.row, found.row[:1].expand_as(found.row))
    assert found.row.std() > 0.5


@pytest.mark.slow
def test_methods_of_recorded_duals_are_right_in_every_sample(recorded: Setting) -> None:
    """The reference uses the duals of the sample that it checks."""
    names = ("closure", "closure_flex", "attention_pass", "asap_4", "asap_4_adaptive")
    methods = {name: build(name, recorded) for name in names}
    assert recorded.recorded is not None
    cells = measure(methods, recorded.recorded, rounds=3, cuda_graph=False)
    assert {name: cell["status"] for name, cell in cells.items()} == dict.fromkeys(names, "timed")
