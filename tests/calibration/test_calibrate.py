"""Steps in sequence on a small model: what each may change, and what it must not make worse."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asap_exp.attention import (
    attention_layers,
    swapped,
)
from asap_exp.calibration import recording
from asap_exp.calibration.calibrate import Calibration, calibrate
from asap_exp.calibration.capture import on_inputs
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.kl import Target, mean_kl
from asap_exp.calibration.prediction_fit import mean_prediction_kl, teacher_examples
from asap_exp.calibration.steps import AdamFit
from tests.small_model import DIM, HEADS, Classifier, batches

pytestmark = pytest.mark.slow

STEPS = {
    "ridge": ["ridge"],
    "kl": ["ridge", "kl"],
    "learned": ["ridge", "learned_slices"],
    "all": ["ridge", "kl", "learned_slices", "end_to_end"],
}


def config(steps: str, **changes: Any) -> CalibrationConfig:
    descent = AdamFit(updates=30, lr=0.02)
    plain = CalibrationConfig(
        name="ridge",
        steps=STEPS[steps],
        sequential=False,
        slices=3,
        candidates=8,
        query_features=True,
        adaptive=False,
        logits=False,
        relaxed=False,
        refine=0,
        ridge=1e-6,
        kl=descent,
        learned_slices=descent,
        end_to_end=descent,
        samples=64,
        holdout=32,
        batch_size=16,
        memory_mib=64,
        seed=0,
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def net() -> Classifier:
    return Classifier().requires_grad_(False).eval()


DONE: dict[str, Calibration] = {}


def run(net: nn.Module, steps: str, **changes: Any) -> Calibration:
    """Calibrate, or return what an earlier test calibrated alike: tests only read it."""
    key = f"{id(net)} {steps} {sorted(changes.items())}"
    if key not in DONE:
        DONE[key] = run_again(net, steps, **changes)
    return DONE[key]


def run_again(net: nn.Module, steps: str, **changes: Any) -> Calibration:
    settings = config(steps, **changes)
    data = CalibrationData(net, batches(1, 2, 3, 4), batches(5, 6), settings, "32-true")
    return calibrate(data, list(attention_layers(net)))


def tensors(calibration: Calibration) -> Iterator[tuple[str, Tensor]]:
    for path, attend in calibration.maps.items():
        for name, tensor in attend.named_parameters():
            yield f"{path}.{name}", tensor


def test_no_step_is_worse_on_held_out_data_than_the_one_before_it(net: Classifier) -> None:
    result = run(net, "all")
    for kl in result.plan_kl.values():
        assert list(kl) == ["ridge", "kl", "learned_slices"]
        for before, after in (("ridge", "kl"), ("kl", "learned_slices")):
            assert (kl[before] >= kl[after]).all()
            assert kl[before].mean() > kl[after].mean()
    for found in result.prediction_kl.values():
        assert found["before"] > found["after"] > 0


def test_predictions_are_as_close_as_is_said(net: Classifier) -> None:
    result = run(net, "all")
    held_out = teacher_examples(net, batches(5, 6), "32-true", on_inputs)
    for name, maps in (("maps", result.maps), ("controls", result.controls)):
        with swapped(net, maps):
            found = mean_prediction_kl(net, held_out, "32-true", on_inputs)
        assert found == pytest.approx(result.prediction_kl[name]["after"], rel=1e-4)


def test_steps_start_from_what_the_steps_before_made(net: Classifier) -> None:
    """With a learning rate that ruins everything, a step gives back what it was given."""
    astray = AdamFit(updates=20, lr=1e4)
    ridge = dict(tensors(run(net, "ridge")))
    for steps in ("kl", "learned", "all"):
        ruined = run(net, steps, kl=astray, learned_slices=astray, end_to_end=astray)
        assert all(torch.equal(tensor, ridge[name]) for name, tensor in tensors(ruined))


def test_each_step_moves_what_it_should(net: Classifier) -> None:
    ridge, kl, learned, whole = (dict(tensors(run(net, steps))) for steps in STEPS)
    for name in ridge:
        assert torch.equal(ridge[name], kl[name]) is name.endswith("theta")
        assert not torch.equal(ridge[name], learned[name])
        assert not torch.equal(learned[name], whole[name])
        if name.endswith("theta"):
            torch.testing.assert_close(whole[name].norm(dim=-1), torch.ones(HEADS, 3))


@pytest.mark.parametrize("steps", ["ridge", "learned"])
def test_adaptive_features_lower_the_divergence_and_leave_the_controls(
    net: Classifier, steps: str
) -> None:
    without, adaptive = (run(net, steps, adaptive=adaptive) for adaptive in (False, True))
    for path, attend in adaptive.maps.items():
        assert attend.adaptive_weight is not None
        assert attend.adaptive_weight.shape == (HEADS, 5, 3)
        assert without.maps[path].adaptive_weight is None
        assert torch.equal(
            adaptive.controls[path].query_weight, without.controls[path].query_weight
        )
        assert adaptive.controls[path].adaptive_weight is None
        last = list(adaptive.plan_kl[path])[-1]
        assert adaptive.plan_kl[path][last].mean() < without.plan_kl[path][last].mean()
        gain = adaptive.ridge[path].solution.r_squared - without.ridge[path].solution.r_squared
        assert (gain > 0).all()


def test_logit_features_and_relaxation_lower_the_divergence(net: Classifier) -> None:
    """And the controls' updates are relaxed as well, so that what that brings is not the map's."""
    without, everything = (
        run(net, "learned", refine=1, logits=more, relaxed=more) for more in (False, True)
    )
    for path, attend in everything.maps.items():
        assert attend.logit_weight is not None
        assert attend.relaxation is not None
        assert attend.logit_weight.shape == (HEADS, 3)
        assert (attend.relaxation != 1).all()
        assert without.maps[path].logit_weight is without.maps[path].relaxation is None
        control = everything.controls[path]
        assert control.logit_weight is None
        assert control.relaxation is not None
        assert not torch.equal(control.relaxation, attend.relaxation)
        last = everything.plan_kl[path]["learned_slices"].mean()
        assert last < without.plan_kl[path]["learned_slices"].mean()
        gain = everything.ridge[path].solution.r_squared - without.ridge[path].solution.r_squared
        assert (gain > 0).all()


@pytest.mark.parametrize(("steps", "refine"), [("ridge", 1), ("learned", 0)])
def test_nothing_is_relaxed_without_updates_or_a_step_that_learns(
    net: Classifier, steps: str, refine: int
) -> None:
    result = run(net, steps, refine=refine, relaxed=True)
    assert all(attend.relaxation is None for attend in result.maps.values())
    assert all(attend.relaxation is None for attend in result.controls.values())


def test_controls_have_query_features_alone_and_take_the_same_steps(net: Classifier) -> None:
    ridge, learned = run(net, "ridge"), run(net, "learned")
    for path in ridge.controls:
        for control in (ridge.controls[path], learned.controls[path]):
            assert control.theta.shape == (HEADS, 0, DIM // HEADS)
        assert not torch.equal(
            ridge.controls[path].query_weight, learned.controls[path].query_weight
        )
        held_out = held_out_targets(net, path)
        before, after = (mean_kl(r.controls[path], held_out) for r in (ridge, learned))
        assert (after <= before).all()
        assert after.mean() < before.mean()
        assert (mean_kl(learned.maps[path], held_out) < after).all()


def held_out_targets(net: nn.Module, path: str) -> list[Target]:
    data = CalibrationData(net, [], batches(5, 6), config("kl"), "32-true")
    return recording.record(data, data.held_out, [path], 2**30)[1][path]


@pytest.mark.parametrize("refine", [0, 1])
def test_refine_is_part_of_what_is_fitted(net: Classifier, refine: int) -> None:
    result = run(net, "learned", refine=refine)
    for path, attend in result.maps.items():
        assert attend.refine == result.controls[path].refine == refine
        kl = result.plan_kl[path]
        assert kl["learned_slices"].mean() < kl["ridge"].mean()
        torch.testing.assert_close(
            mean_kl(attend, held_out_targets(net, path)), kl["learned_slices"]
        )


def test_sequential_fits_the_second_layer_on_what_the_compiled_first_one_gives(
    net: Classifier,
) -> None:
    frozen, sequential = (run(net, "ridge", sequential=s, slices=1) for s in (False, True))
    for name in ("theta", "weight", "query_weight"):
        first, second = (
            [getattr(r.maps[path], name) for r in (frozen, sequential)]
            for path in ("first", "second")
        )
        assert torch.equal(*first)
        if name != "theta":
            assert not torch.equal(*second)
    with swapped(net, {"first": sequential.maps["first"]}):
        again = run_second(net).maps["second"]
    assert torch.equal(again.weight, sequential.maps["second"].weight)


@pytest.mark.parametrize("steps", ["ridge", "learned"])
def test_sequential_control_follows_the_control_before_it_whatever_slices_the_map_has(
    net: Classifier, steps: str
) -> None:
    few, many = (run(net, steps, sequential=True, slices=slices) for slices in (1, 3))
    control = few.controls["second"].query_weight
    assert torch.equal(control, many.controls["second"].query_weight)
    with swapped(net, {"first": few.controls["first"]}):
        again = run_second(net, steps).controls["second"]
    assert torch.equal(control, again.query_weight)


def run_second(net: nn.Module, steps: str = "ridge") -> Calibration:
    data = CalibrationData(
        net, batches(1, 2, 3, 4), batches(5, 6), config(steps, slices=1), "32-true"
    )
    return calibrate(data, ["second"])


def test_controls_step_by_what_they_miss_themselves(net: Classifier) -> None:
    """A step is as long as the features of a map or a control alone leave of the dual."""
    few, many = (run(net, "learned", slices=slices) for slices in (1, 3))
    for path in few.controls:
        control = few.scales["controls"][path]
        assert (control > few.scales["maps"][path][:, 1:]).all()
        assert torch.equal(control, many.scales["controls"][path])
        assert torch.equal(few.controls[path].query_weight, many.controls[path].query_weight)


def test_teacher_is_left_as_it_was(net: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    attends = [layer.attend for layer in attention_layers(net).values()]
    run_again(net, "all", sequential=True)
    assert [layer.attend for layer in attention_layers(net).values()] == attends
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_memory_bounds_the_batches_that_are_kept_not_those_that_are_summed(
    net: Classifier,
) -> None:
    data = CalibrationData(net, batches(1, 2, 3, 4), batches(5), config("kl"), "32-true")
    sums, targets = recording.record(data, data.fit, ["first", "second"], 2**30)
    one_batch = sum(kept[0].nbytes for kept in targets.values())
    rooms = {0: [], 1: [0], one_batch: [0], 2 * one_batch: [0, 2], 4 * one_batch: [0, 1, 2, 3]}
    for room, kept in rooms.items():
        some_sums, some = recording.record(data, data.fit, ["first", "second"], room)
        for path in sums:
            assert len(some[path]) == len(kept)
            for target, number in zip(some[path], kept, strict=True):
                assert torch.equal(target.q, targets[path][number].q)
            assert torch.equal(some_sums[path].gram, sums[path].gram)


def test_memory_bounds_whole_batches_of_a_layer_that_runs_twice(net: Classifier) -> None:
    """What is kept of each batch are all its calls, and all are summed."""

    def twice(model: nn.Module, batch: tuple[Tensor, None]) -> Tensor:
        return model.second(model.second(model.first(batch[0])))

    data = CalibrationData(net, batches(1, 2, 3, 4), batches(5), config("kl"), "32-true", twice)
    group = ["first", "second"]
    _, all_targets = recording.record(data, data.fit, group, 2**30)
    assert {path: len(kept) for path, kept in all_targets.items()} == {"first": 4, "second": 8}
    one_batch = all_targets["first"][0].nbytes * 3
    sums, targets = recording.record(data, data.fit, group, 2 * one_batch)
    for path, calls in {"first": [0, 2], "second": [0, 1, 4, 5]}.items():
        assert len(targets[path]) == len(calls)
        for target, number in zip(targets[path], calls, strict=True):
            assert torch.equal(target.q, all_targets[path][number].q)
    of_second = all_targets["second"]
    energy = sum(centred_energy(t, attention_layers(net)["second"].attend) for t in of_second)
    torch.testing.assert_close(sums["second"].energy, energy)
    result = calibrate(data, group)
    assert {name: len(kl) for name, kl in result.plan_kl.items()} == {"first": 2, "second": 2}


def centred_energy(target: Target, teacher: nn.Module) -> Tensor:
    dual = teacher.ready_dual(target.q, target.k).double()
    return (dual - dual.mean(dim=-1, keepdim=True)).square().sum(dim=(0, 2))


def test_same_seed_gives_the_same_maps(net: Classifier) -> None:
    first, again, other = (dict(tensors(run_again(net, "all", seed=seed))) for seed in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
