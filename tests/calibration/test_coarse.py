"""The coarse dual as a feature of the map: against the teacher and POT, its fit and its padding."""

from pathlib import Path
from typing import Any

import ot
import pytest
import torch
from torch import Tensor

import asap_exp
from asap_exp.attention import AsapAttention, LayerInputs, SinkhornAttention, attention_layers
from asap_exp.calibration.config import CoarseKeys
from asap_exp.calibration.gradient import trainable
from asap_exp.calibration.identity import check_attention
from asap_exp.calibration.kl import mean_kl, teacher_target, total_kl
from asap_exp.calibration.plan_fit import fit_plans
from asap_exp.calibration.ridge import NormalEquations, centred, random_slices
from asap_exp.calibration.stacking import stack_maps, stackable
from asap_exp.calibration.steps import AdamFit, LayerData
from asap_exp.core.errors import UserError
from asap_exp.ops import CoarseSettings, SlicedMap
from tests.calibration.inputs import DIM, HEADS, TOKENS, inputs, poisoned, targets
from tests.small_model import Classifier, compile_small, kl, loader, tokens

TEACHER = SinkhornAttention(num_iters=5)
EVERYTHING = CoarseSettings(TOKENS, num_iters=5)
SOME = CoarseSettings(4, "farthest", "voronoi", num_iters=5)
FEW = AdamFit(updates=40, lr=0.05)


def coarse_map(settings: CoarseSettings, *, slices: int = 0, refine: int = 0) -> AsapAttention:
    """The coarse dual as it is, beside slices and query features of small weights."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "theta": random_slices(HEADS, slices, DIM, seed=1),
        "weight": 0.1 * torch.randn(HEADS, slices, generator=generator),
        "query_weight": torch.zeros(HEADS, DIM + 1),
        "coarse_weight": torch.ones(HEADS, 1),
        "relaxation": torch.full((HEADS,), 1.2) if refine else None,
    }
    return AsapAttention.of(SlicedMap.of({**tensors, "coarse": settings}), refine=refine)


def fitted(
    settings: CoarseSettings, data: LayerInputs, *, slices: int = 0
) -> tuple[NormalEquations, Tensor]:
    theta = random_slices(HEADS, slices, DIM, seed=1)
    equations = NormalEquations(theta, ("query_features", "coarse"), settings)
    equations.add(data, TEACHER)
    return equations, equations.solve(slice(None), 1e-9).weight


@pytest.mark.parametrize("padded", [False, True])
def test_with_all_tokens_it_is_the_teacher(padded: bool) -> None:
    data = inputs(5, 0, padded=padded)
    mask = data.key_padding_mask
    attend = coarse_map(EVERYTHING)
    plans = [a.plan(data.q, data.k, key_padding_mask=mask) for a in (attend, TEACHER)]
    torch.testing.assert_close(*plans, atol=1e-5, rtol=1e-4)
    equations, weight = fitted(EVERYTHING, data)
    torch.testing.assert_close(weight[:, -1], torch.ones(HEADS).double(), atol=1e-4, rtol=0)
    assert (equations.r_squared(weight, slice(None)) > 1 - 1e-6).all()


def test_many_updates_on_all_tokens_are_the_plan_of_pot() -> None:
    q, k, _, _ = (x if x is None else x[:1].double() / 2 for x in inputs(1, 0))
    found = coarse_map(EVERYTHING._replace(num_iters=400)).double().plan(q, k)
    for head in range(HEADS):
        cost = -(q[0, head] @ k[0, head].T) * DIM**-0.5
        equal = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)
        plan = ot.sinkhorn(equal, equal, cost, 1.0, method="sinkhorn_log", stopThr=1e-13)
        torch.testing.assert_close(found[0, head], TOKENS * plan, atol=1e-9, rtol=1e-6)


def test_slices_add_to_what_it_explains_and_it_to_what_they_explain() -> None:
    data = inputs(40, 0)
    whole, weight = fitted(SOME, data, slices=2)
    explained = whole.r_squared(weight, slice(None))
    alone, alone_weight = fitted(SOME, data)
    assert (explained > alone.r_squared(alone_weight, slice(None))).all()
    without = whole.solve(slice(0, whole.blocks["coarse"].start), 1e-9)
    assert (explained > without.r_squared + 0.01).all()


@pytest.mark.parametrize("settings", [SOME, CoarseSettings(3, "random", seed=2), EVERYTHING])
def test_padded_is_cut(settings: CoarseSettings) -> None:
    data = inputs(5, 3, padded=True)
    assert data.key_padding_mask is not None
    attend = coarse_map(settings, slices=2, refine=1)
    q, k, _, mask = poisoned(data)
    dual = attend.dual(q, k, key_padding_mask=mask)
    for sample, length in enumerate((~mask).sum(dim=-1).tolist()):
        cut = [x[sample : sample + 1, :, :length] for x in (q, k)]
        alone = attend.dual(*cut)
        torch.testing.assert_close(
            centred(dual[sample : sample + 1, :, :length], None), centred(alone, None),
            atol=1e-5, rtol=1e-4,
        )  # fmt: skip
        assert not dual[sample, :, length:].any()


@pytest.mark.parametrize("length", [1, 2])
def test_very_short_sequences(length: int) -> None:
    q, k, _, _ = inputs(3, 0)
    q, k = (x[:, :, :length].clone().requires_grad_() for x in (q, k))
    attend = coarse_map(SOME, slices=2)
    plan = attend.plan(q, k)
    torch.testing.assert_close(plan.sum(dim=-1), torch.ones(plan.shape[:3]))
    plan.square().sum().backward()
    assert q.grad.isfinite().all()
    if length == 1:
        assert not attend.dual(q, k).any(), "it is centred"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("refine", [0, 1])
def test_gradient_of_the_fit_is_that_of_finite_differences(padded: bool, refine: int) -> None:
    data = inputs(3, 0, padded=padded)
    data = LayerInputs(data.q.double(), data.k.double(), data.v.double(), data.key_padding_mask)
    attend = coarse_map(SOME, slices=2, refine=refine).double()
    target = teacher_target(data, TEACHER)
    scale = torch.ones(HEADS, 2 + DIM + 1 + 1, dtype=torch.float64)
    with trainable(attend, scale, slices=True) as parameters:
        total_kl(attend, target).sum().backward()
        assert len(parameters) == (5 if refine else 4)
        for parameter in parameters:
            assert parameter.grad is not None
            flat, step = parameter.detach().flatten(), 1e-6
            for number in range(0, flat.numel(), 3):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        flat[number] += sign * step
                        values.append(total_kl(attend, target).sum().item())
                        flat[number] -= sign * step
                found = parameter.grad.flatten()[number].item()
                slope = (values[0] - values[1]) / (2 * step)
                assert found == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_fit_by_gradient_moves_its_weight_and_lowers_the_divergence() -> None:
    attend = coarse_map(SOME, slices=2)
    data = LayerData(targets(inputs(8, 0)), targets(inputs(8, 1)), seed=0)
    before = mean_kl(attend, data.held_out)
    fit_plans(attend, torch.ones(HEADS, 2 + DIM + 1 + 1), data, FEW, slices=True)
    assert (mean_kl(attend, data.held_out) < before).all()
    assert (attend.coarse_weight != 1).all()
    assert attend.coarse == SOME


def test_layers_of_other_tokens_are_not_fitted_as_one() -> None:
    data = targets(inputs(3, 0))
    maps = {"a": coarse_map(SOME), "b": coarse_map(SOME), "c": coarse_map(EVERYTHING)}
    seen = dict.fromkeys(maps, data)
    assert stackable(maps, seen, "a", "b")
    assert not stackable(maps, seen, "a", "c")
    assert stack_maps([maps["a"], maps["b"]]).coarse == SOME


@pytest.mark.parametrize(
    "options",
    [
        {"slices": 0, "adaptive": False, "steps": ("ridge",)},
        {"slices": 2, "refine": 1, "relaxed": True},
        {"slices": 2, "steps": ("ridge", "end_to_end")},
    ],
)
@pytest.mark.slow
def test_compiled_with_it_saved_and_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    teacher = Classifier().eval()
    coarse = CoarseKeys(tokens=5, choice="random", weights="voronoi", seed=3)
    compiled, x = compile_small(teacher, loader(), coarse=coarse, **options), tokens(9)
    without = compile_small(teacher, loader(), **options)
    assert kl(teacher, compiled, x) < kl(teacher, without, x)
    for layer in attention_layers(compiled).values():
        assert layer.attend.coarse == CoarseSettings(5, "random", "voronoi", 8, 3)
    asap_exp.save_compiled(compiled, tmp_path)
    loaded = asap_exp.load_compiled(teacher, tmp_path)
    assert torch.equal(loaded(x), compiled(x))
    assert asap_exp.drift(loaded, x) == asap_exp.drift(compiled, x)
    restored = asap_exp.load_compiled(teacher, compiled.state_dict())
    assert torch.equal(restored(x), compiled(x))
    for path, layer in attention_layers(restored).items():
        assert layer.attend.coarse == compiled.get_submodule(path).attend.coarse


@pytest.mark.parametrize("coarse", [5, None, {"tokens": 5}, CoarseKeys()])
def test_what_says_no_tokens_is_refused(coarse: Any) -> None:
    with pytest.raises(UserError, match=r"coarse=.* must be CoarseKeys\(tokens=\.\.\.\)"):
        compile_small(Classifier(), loader(), coarse=coarse)
    with pytest.raises(UserError, match=r"coarse\.tokens=0 is not allowed"):
        compile_small(Classifier(), loader(), coarse=CoarseKeys(tokens=0), steps=("ridge",))


@pytest.mark.parametrize(
    ("coarse", "words"),
    [
        ({"tokens": 0}, r"attentions\.x is no attention: coarse\.tokens must be at least 1, got 0"),
        ({"tokens": 3, "choice": "all"}, r"coarse\.choice must be one of"),
        ({"tokens": 3, "size": 3}, r"is no attention: .*unexpected keyword argument 'size'"),
        ({}, r"is no attention: .*tokens"),
    ],
)
def test_artifact_with_other_settings_is_refused(coarse: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_attention("attentions.x", {"name": "asap", "refine": 0, "coarse": coarse})
