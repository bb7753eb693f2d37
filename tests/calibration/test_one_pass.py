"""Maps of one pass: their fit to the dual of the keys, and what is compiled with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import asap_exp
from asap_exp.attention import (
    AsapAttention,
    LayerInputs,
    SinkhornAttention,
    attention_config,
    attention_layers,
)
from asap_exp.calibration.config import CoarseKeys
from asap_exp.calibration.gradient import trainable
from asap_exp.calibration.kl import mean_kl, teacher_target, total_kl
from asap_exp.calibration.plan_fit import fit_plans
from asap_exp.calibration.ridge import NormalEquations, centred, random_slices
from asap_exp.calibration.stacking import stack_maps, stackable, unstack_into
from asap_exp.calibration.steps import AdamFit, LayerData
from asap_exp.core.errors import UserError
from asap_exp.ops import CoarseSettings, SlicedMap, map_dual, sinkhorn_duals
from tests.calibration.inputs import DIM, HEADS, SLICES, TOKENS, inputs, small_map, targets
from tests.small_model import Classifier, compile_small, kl, loader, tokens

TEACHER = SinkhornAttention(num_iters=5)
EVERYTHING = CoarseSettings(TOKENS, num_iters=5)
FEATURES = ("query_features", "adaptive", "logits", "coarse")


def one_pass(map: AsapAttention) -> AsapAttention:
    return AsapAttention.of(map.map._replace(one_pass=True), eps=map.eps)


def fitted(data: LayerInputs, coarse: CoarseSettings) -> tuple[NormalEquations, SlicedMap]:
    theta = random_slices(HEADS, SLICES, DIM, seed=1)
    equations = NormalEquations(theta, FEATURES, coarse, one_pass=True)
    equations.add(data, TEACHER)
    weights = equations.weights(equations.solve(slice(None), 1e-9).weight.float())
    return equations, SlicedMap.of(
        {"theta": theta, **weights, "coarse": coarse, "one_pass": equations.one_pass}
    )


@pytest.mark.parametrize("padded", [False, True])
def test_regression_is_of_the_column_dual_on_features_of_the_keys(padded: bool) -> None:
    data = inputs(6, 0, padded=padded)
    q, k, _, mask = data
    equations, map = fitted(data, CoarseSettings(4, num_iters=5))
    wanted = centred(sinkhorn_duals(q, k, num_iters=5, key_padding_mask=mask).col, mask)
    found = map_dual(q, k, map, key_padding_mask=mask)
    missed = (wanted - found).square().sum(dim=(0, 2)) / wanted.square().sum(dim=(0, 2))
    r_squared = equations.r_squared(equations.solve(slice(None), 1e-9).weight, slice(None))
    torch.testing.assert_close(1 - missed.double(), r_squared, atol=1e-4, rtol=0)
    two_sided = map_dual(q, k, map._replace(one_pass=False), key_padding_mask=mask)
    assert (missed < (wanted - two_sided).square().sum(dim=(0, 2)) / 4).all()


@pytest.mark.parametrize("padded", [False, True])
def test_with_the_coarse_dual_of_all_tokens_it_is_the_teacher(padded: bool) -> None:
    data = inputs(6, 0, padded=padded)
    q, k, _, mask = data
    equations, map = fitted(data, EVERYTHING)
    coarse = equations.blocks["coarse"]
    weight = equations.solve(slice(None), 1e-9).weight[:, coarse]
    torch.testing.assert_close(weight, torch.ones(HEADS, 1).double(), atol=1e-4, rtol=0)
    plans = [x.plan(q, k, key_padding_mask=mask) for x in (AsapAttention.of(map), TEACHER)]
    torch.testing.assert_close(*plans, atol=1e-4, rtol=1e-3)
    assert (mean_kl(AsapAttention.of(map), targets(data)) < 1e-6).all()


@pytest.mark.parametrize("padded", [False, True])
def test_divergence_is_that_of_the_plans(padded: bool) -> None:
    data = inputs(4, 0, padded=padded)
    q, k, _, mask = data
    attend = one_pass(small_map(everything=True))
    A, B = (x.plan(q, k, key_padding_mask=mask).double() for x in (TEACHER, attend))
    expected = torch.where(A > 0, A * (A / B.clamp(min=1e-300)).log(), 0.0).sum(dim=(0, 2, 3))
    found = total_kl(attend, teacher_target(data, TEACHER))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_gradient_of_the_fit_is_that_of_finite_differences(padded: bool) -> None:
    data = inputs(3, 0, padded=padded)
    data = LayerInputs(data.q.double(), data.k.double(), data.v.double(), data.key_padding_mask)
    attend = one_pass(small_map(everything=True)).double()
    target = teacher_target(data, TEACHER)
    scale = torch.ones(HEADS, 6 * SLICES + DIM + 4, dtype=torch.float64)
    with trainable(attend, scale, slices=True) as parameters:
        assert len(parameters) == 5
        total_kl(attend, target).sum().backward()
        for parameter in parameters:
            assert parameter.grad is not None
            flat, step = parameter.detach().flatten(), 1e-6
            for number in range(0, flat.numel(), 5):
                found = parameter.grad.flatten()[number].item()
                slope = slope_at(flat, number, lambda: total_kl(attend, target).sum(), step)
                assert found == pytest.approx(slope, rel=1e-4, abs=1e-6)


@torch.no_grad()
def slope_at(flat: Tensor, number: int, value: Any, step: float) -> float:
    values = []
    for sign in (1, -1):
        flat[number] += sign * step
        values.append(value().item())
        flat[number] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def test_fit_by_gradient_lowers_the_divergence_and_keeps_the_form() -> None:
    attend = one_pass(small_map())
    data = LayerData(targets(inputs(8, 0)), targets(inputs(8, 1)), seed=0)
    before = mean_kl(attend, data.held_out)
    scale = torch.ones(HEADS, SLICES + DIM + 1)
    fit_plans(attend, scale, data, AdamFit(updates=40, lr=0.05), slices=True)
    assert (mean_kl(attend, data.held_out) < before).all()
    assert attend.map.one_pass


def test_layers_of_both_forms_are_not_fitted_as_one() -> None:
    data = targets(inputs(3, 0))
    maps = {"a": one_pass(small_map()), "b": one_pass(small_map(seed=1)), "c": small_map()}
    seen = dict.fromkeys(maps, data)
    assert stackable(maps, seen, "a", "b")
    assert not stackable(maps, seen, "a", "c")
    pair = [maps["a"], maps["b"]]
    whole = stack_maps(pair)
    assert whole.one_pass
    stacked = mean_kl(whole, [target_twice(target) for target in data])
    torch.testing.assert_close(stacked, torch.cat([mean_kl(each, data) for each in pair]))
    unstack_into(whole, pair)
    assert all(each.one_pass for each in pair)


def target_twice(target: Any) -> Any:
    """The same heads twice, as of two layers."""
    return type(target)(*(x if x is None else torch.cat([x, x], dim=1) for x in target))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": ("ridge",)},
        {"steps": ("ridge", "learned_slices"), "coarse": CoarseKeys(tokens=3)},
        {"steps": ("ridge", "end_to_end"), "logits": True},
    ],
    ids=["ridge", "learned slices, coarse", "end to end, logits"],
)
@pytest.mark.slow
def test_compiled_saved_and_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    teacher, x = Classifier().eval(), tokens(9)
    compiled = compile_small(teacher, loader(), one_pass=True, **options)
    softmax = asap_exp.convert(teacher, attention="softmax")
    assert kl(teacher, compiled, x) < kl(teacher, softmax, x) / 2
    for layer in attention_layers(compiled).values():
        assert attention_config(layer.attend)["one_pass"] is True
        assert "one_pass" in repr(layer.attend)
    asap_exp.save_compiled(compiled, tmp_path)
    loaded = asap_exp.load_compiled(teacher, tmp_path)
    assert torch.equal(loaded(x), compiled(x))
    assert asap_exp.drift(loaded, x) == asap_exp.drift(compiled, x)
    restored = asap_exp.load_compiled(teacher, compiled.state_dict())
    assert torch.equal(restored(x), compiled(x))


def test_two_sided_maps_say_nothing_of_the_form() -> None:
    """Artifacts, states and their hashes stay those of maps that are older than the choice."""
    attend = small_map(refine=1)
    assert attention_config(attend) == {"name": "asap", "refine": 1, "eps": 1.0}
    assert attend.get_extra_state().tolist() == [1.0, 1.0]
    coarse = AsapAttention.of(attend.map._replace(coarse=EVERYTHING), refine=1)
    for each in (attend, coarse, one_pass(attend), one_pass(coarse)):
        other = small_map()
        other.set_extra_state(each.get_extra_state())
        assert (other.refine, other.coarse, other.one_pass) == (
            each.refine, each.coarse, each.one_pass,
        )  # fmt: skip


def test_updates_are_refused() -> None:
    words = r"^refine=1 updates the dual of the queries, and with one_pass=True a map predicts "
    with pytest.raises(UserError, match=words + r".*; set refine=0, or one_pass=False$"):
        compile_small(Classifier(), loader(), one_pass=True, refine=1)
    with pytest.raises(UserError, match="one_pass='yes' has the wrong type"):
        compile_small(Classifier(), loader(), one_pass="yes")
    with pytest.raises(ValueError, match=r"refine=1 updates the dual of the queries, and one_pass"):
        AsapAttention(torch.ones(1, 1, 4), torch.ones(1, 1), refine=1, one_pass=True)
