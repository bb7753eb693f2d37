"""The divergence of plans and the fits that lower it, on fabricated recordings."""

import pytest
import torch
from torch import Tensor

from asap_exp.attention import AsapAttention, LayerInputs, SinkhornAttention
from asap_exp.calibration.gradient import check_points, reshuffled, trainable, values
from asap_exp.calibration.kl import mean_kl, teacher_target, total_kl
from asap_exp.calibration.plan_fit import fit_plans
from asap_exp.calibration.steps import AdamFit, LayerData
from tests.calibration.inputs import (
    DIM,
    HEADS,
    SLICES,
    inputs,
    poisoned,
    small_map,
    targets,
    unit_scale,
)

FEW = AdamFit(updates=40, lr=0.05)
padded_or_not = pytest.mark.parametrize("padded", [False, True])


def plain_kl(attend: AsapAttention, data: LayerInputs, teacher: SinkhornAttention) -> Tensor:
    """By the definition, row by row over the valid tokens, in float64: `[H]`."""
    q, k, _, mask = data
    plans = [a.plan(q.double(), k.double(), key_padding_mask=mask) for a in (teacher, attend)]
    rows = []
    for b in range(len(q)):
        valid = torch.ones(q.shape[2], dtype=torch.bool) if mask is None else ~mask[b]
        A, B = (plan[b][:, valid][:, :, valid] for plan in plans)
        rows.append((A * (A / B).log()).sum(dim=-1))
    return torch.cat(rows, dim=1).mean(dim=1)


@padded_or_not
@pytest.mark.parametrize("refine", [0, 2])
def test_divergence_is_that_of_the_plans(padded: bool, refine: int) -> None:
    data, attend = inputs(5, 0, padded=padded), small_map(refine=refine)
    teacher = SinkhornAttention(num_iters=5)
    expected = plain_kl(attend, data, teacher)
    assert (expected > 1e-3).all()
    found = mean_kl(attend, [teacher_target(data, teacher)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_mean_over_batches_counts_rows_not_batches() -> None:
    whole, attend = inputs(5, 0, padded=True), small_map()
    parts = [LayerInputs(*(t[rows] for t in whole)) for rows in (slice(0, 1), slice(1, 5))]
    torch.testing.assert_close(mean_kl(attend, targets(*parts)), mean_kl(attend, targets(whole)))


def test_divergence_is_finite_where_a_plan_underflows() -> None:
    q, k, v, mask = inputs(3, 0)
    data = LayerInputs(20 * q, 20 * k, v, mask)
    (target,) = targets(data)
    plan = small_map().plan(data.q, data.k)
    assert (plan == 0).any()
    assert mean_kl(small_map(), [target]).isfinite().all()


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("refine", [0, 1])
def test_gradient_reaches_slices_and_all_weights(refine: int, everything: bool) -> None:
    """Against differences, in float64."""
    attend = small_map(refine=refine, everything=everything).double()
    q, k, v, _ = inputs(3, 0)
    data = LayerInputs(q.double(), k.double(), v.double(), None)
    (target,) = targets(data)
    scale = unit_scale(everything=everything).double()
    with trainable(attend, scale, slices=True) as parameters:
        assert len(parameters) == 3 + (2 + refine) * everything
        gradients = torch.autograd.grad(total_kl(attend, target).sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert gradient.abs().amax(dim=-1).min() > 0
            direction = torch.randn_like(parameter)
            h = 1e-6
            with torch.no_grad():
                ends = []
                for sign in (1, -2):
                    parameter.add_(sign * h * direction)
                    ends.append(total_kl(attend, target).sum())
                parameter.add_(h * direction)
            slope = (ends[0] - ends[1]) / (2 * h)
            torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@padded_or_not
@pytest.mark.parametrize("slices", [False, True])
def test_fit_lowers_the_divergence_of_every_head_on_held_out_data(
    padded: bool, slices: bool
) -> None:
    attend = small_map()
    theta = attend.theta.clone()
    fit = targets(*(inputs(6, seed, padded=padded) for seed in (1, 2)))
    held_out = targets(inputs(6, 3, padded=padded))
    before = mean_kl(attend, held_out)
    fit_plans(attend, unit_scale(), LayerData(fit, held_out, seed=0), FEW, slices=slices)
    assert (mean_kl(attend, held_out) < 0.9 * before).all()
    assert torch.equal(attend.theta, theta) is not slices
    torch.testing.assert_close(attend.theta.norm(dim=-1), torch.ones(HEADS, SLICES))
    assert not any(parameter.requires_grad for parameter in attend.parameters())


@pytest.mark.slow
def test_learned_slices_do_better_than_the_weights_alone() -> None:
    fit, held_out = targets(inputs(12, 1)), targets(inputs(12, 2))
    reached = []
    for slices in (False, True):
        attend = small_map()
        fit_plans(
            attend,
            unit_scale(),
            LayerData(fit, held_out, seed=0),
            AdamFit(150, 0.05),
            slices=slices,
        )
        reached.append(mean_kl(attend, held_out))
    assert (reached[1] < reached[0]).all()


@pytest.mark.parametrize("lr", [1e4, float("inf")])
def test_fit_that_goes_astray_leaves_the_map_as_it_was(lr: float) -> None:
    attend = small_map()
    before = values(attend)
    fit, held_out = targets(inputs(6, 1)), targets(inputs(6, 3))
    fit_plans(attend, unit_scale(), LayerData(fit, held_out, seed=0), AdamFit(20, lr), slices=True)
    after = values(attend)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_each_head_keeps_its_own_best() -> None:
    """Head 0's held-out data is the fitted data; head 1's plans there are another teacher's."""
    fit = targets(inputs(6, 1))
    other = targets(inputs(6, 1), num_iters=1)
    mixed = [
        target._replace(
            **{
                name: torch.stack([getattr(target, name)[:, 0], getattr(wrong, name)[:, 1]], dim=1)
                for name in ("row", "column", "column_sums")
            }
        )
        for target, wrong in zip(fit, other, strict=True)
    ]
    attend = small_map()
    attend.weight.zero_(), attend.query_weight.zero_()  # the plan of T = 1: head 1 is done
    fit_plans(attend, unit_scale(), LayerData(fit, mixed, seed=0), FEW, slices=True)
    assert attend.weight[0].any()
    assert not attend.weight[1].any()


@pytest.mark.slow
def test_padded_places_change_no_fit() -> None:
    data = inputs(4, 1, padded=True)
    fitted = []
    for each in (data, poisoned(data)):
        attend = small_map()
        fit = targets(each)
        fit_plans(attend, unit_scale(), LayerData(fit, fit, seed=0), FEW, slices=True)
        fitted.append(values(attend))
    assert all(torch.equal(fitted[0][name], fitted[1][name]) for name in fitted[0])


def test_map_without_slices_can_be_fitted() -> None:
    attend = small_map(slices=0)
    fit, held_out = targets(inputs(6, 1)), targets(inputs(6, 3))
    before = mean_kl(attend, held_out)
    fit_plans(
        attend, torch.ones(HEADS, DIM + 1), LayerData(fit, held_out, seed=0), FEW, slices=True
    )
    assert (mean_kl(attend, held_out) < before).all()


def test_last_update_is_checked_and_none_twice() -> None:
    assert check_points(3, 20) == {1, 2, 3}
    assert check_points(100, 4) == {25, 50, 75, 100}


def test_every_pass_over_the_batches_takes_each_once() -> None:
    drawn = list(reshuffled("abc", 7, seed=0))
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == list("abc")
    assert drawn == list(reshuffled("abc", 7, seed=0)) != list(reshuffled("abc", 7, seed=1))
