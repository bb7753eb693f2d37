"""Sums and fits over several ranks, in float64: those of one process, to its rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numpy import ndarray
from torch.utils._pytree import tree_map_only

from asap_exp.attention import AsapAttention, LayerInputs, SinkhornAttention
from asap_exp.calibration.gradient import values
from asap_exp.calibration.kl import mean_kl
from asap_exp.calibration.plan_fit import fit_plans
from asap_exp.calibration.ridge import NormalEquations, random_slices
from asap_exp.calibration.steps import AdamFit, LayerData
from asap_exp.core.ranks import ALONE, Devices, Ranks
from asap_exp.core.team import Team
from tests.calibration.inputs import DIM, HEADS, SLICES, inputs, small_map, targets, unit_scale
from tests.several import in_ranks

pytestmark = pytest.mark.slow


def in_two(work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` returns in each of two ranks."""

    def rank() -> Any:
        team = Team(Devices("cpu", 2, 1))
        with team.working():
            if team.leads:
                team.begin(None)
            else:
                team.orders()
            return tree_map_only(torch.Tensor, torch.Tensor.numpy, work(team.ranks))

    ended = in_ranks(rank)
    for one in ended:
        assert one is not None
        assert not one.error, one.printed
    return [tree_map_only(ndarray, torch.from_numpy, one.result) for one in ended if one]


def calls(ranks: Ranks, *, padded: bool = True) -> list[LayerInputs]:
    """A rank's part of three batches, of which one has a single sample."""
    found = []
    for samples, seed in ((5, 0), (1, 1), (4, 2)):
        q, k, v, mask = inputs(samples, seed, padded=padded)
        part = ranks.parts(samples)[ranks.rank]
        found.append(LayerInputs(q.double(), k.double(), v.double(), mask).of_samples(part))
    return found


@pytest.mark.parametrize("padded", [True, False])
def test_normal_equations_of_all_ranks_are_those_of_all_samples(padded: bool) -> None:
    def summed(ranks: Ranks) -> tuple[torch.Tensor, ...]:
        equations = NormalEquations(random_slices(HEADS, SLICES, DIM, seed=0).double())
        for call in calls(ranks, padded=padded):
            equations.add(call, SinkhornAttention(num_iters=5))
        equations.reduce()
        solution = equations.solve(slice(None), 1e-6)
        return equations.gram, equations.moment, equations.energy, solution.weight

    expected = summed(ALONE)
    for found in in_two(summed):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("padded", [True, False])
def test_fit_by_gradient_of_all_ranks_is_that_of_all_samples(padded: bool) -> None:
    def fitted(ranks: Ranks) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        recorded = targets(*calls(ranks, padded=padded))
        attend: AsapAttention = small_map(everything=True).double()
        scale = unit_scale(everything=True).double()
        data = LayerData(recorded, recorded, seed=0)
        fit_plans(attend, scale, data, AdamFit(updates=12, lr=0.02), slices=True)
        return values(attend), mean_kl(attend, recorded)

    weights, kl = fitted(ALONE)
    start = values(small_map(everything=True).double())
    assert any((weights[name] != start[name]).any() for name in weights)
    for found, its_kl in in_two(fitted):
        torch.testing.assert_close(found, weights, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(its_kl, kl, rtol=1e-9, atol=0.0)
