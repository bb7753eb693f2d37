"""Forward selection on the Gram matrix against fitting every candidate anew."""

from functools import partial

import pytest
import torch

from asap_exp.attention import SinkhornAttention
from asap_exp.calibration.ridge import NormalEquations, random_slices
from asap_exp.calibration.selection import select_slices
from tests.calibration.inputs import DIM, HEADS, inputs

# Potentials are float32; the sums over them float64.
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-4)
CANDIDATES, CHOSEN, RIDGE = 12, 4, 1e-9


@pytest.fixture(scope="module")
def equations() -> NormalEquations:
    result = NormalEquations(random_slices(HEADS, CANDIDATES, DIM, seed=0))
    result.add(inputs(6, 1, padded=True), SinkhornAttention(num_iters=5))
    return result


def fitted_features(query_features: bool, slices: int) -> slice:
    return slice(None) if query_features else slice(0, slices)


@pytest.mark.parametrize("query_features", [False, True])
def test_each_choice_is_the_one_that_fits_best_beside_those_before_it(
    equations: NormalEquations, query_features: bool
) -> None:
    chosen = select_slices(equations, CHOSEN, query_features=query_features, ridge=RIDGE)
    for head in range(HEADS):
        before: list[int] = []
        for choice in chosen[head].tolist():
            r_squared = {}
            for candidate in set(range(CANDIDATES)) - set(before):
                picked = torch.tensor([*before, candidate]).expand(HEADS, -1)
                solution = equations.subset(picked).solve(
                    fitted_features(query_features, len(before) + 1), RIDGE
                )
                r_squared[candidate] = solution.r_squared[head].item()
            assert choice == max(r_squared, key=r_squared.get)
            before.append(choice)


def test_subset_is_what_its_slices_alone_would_have_summed(equations: NormalEquations) -> None:
    chosen = torch.tensor([[3, 0, 7], [1, 11, 2]])
    alone = NormalEquations(torch.stack([equations.theta[h, chosen[h]] for h in range(HEADS)]))
    alone.add(inputs(6, 1, padded=True), SinkhornAttention(num_iters=5))
    subset = equations.subset(chosen)
    assert torch.equal(subset.theta, alone.theta)
    assert_close(subset.gram, alone.gram)
    assert_close(subset.moment, alone.moment)
    assert_close(subset.energy, alone.energy)


def test_chosen_slices_explain_more_than_the_first_ones(equations: NormalEquations) -> None:
    chosen = select_slices(equations, CHOSEN, query_features=False, ridge=RIDGE)
    first = torch.arange(CHOSEN).expand(HEADS, -1)
    features = slice(0, CHOSEN)
    best, plain = (
        equations.subset(picked).solve(features, RIDGE).r_squared for picked in (chosen, first)
    )
    assert (best > plain).all()


def test_no_slice_is_chosen_twice_even_if_all_are_alike() -> None:
    theta = random_slices(HEADS, 1, DIM, seed=0).expand(-1, 5, -1).contiguous()
    equations = NormalEquations(theta)
    equations.add(inputs(4, 2), SinkhornAttention(num_iters=3))
    chosen = select_slices(equations, 5, query_features=True, ridge=1e-6)
    assert chosen.sort(dim=1).values.tolist() == [list(range(5))] * HEADS
