"""The search on made-up candidates, against every plan there is."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asap_exp.attention import UniformAttention
from asap_exp.distill.search import (
    Candidate,
    Plan,
    cut,
    fastest_that_holds,
    highest_within,
    ladder,
    most_faithful_that_fits,
    total_ms,
    uniform,
    upgrades,
)


def candidate(ms: float, kl: float, label: str = "") -> Candidate:
    return Candidate(label or f"{ms} ms", UniformAttention(), ms, kl)


LADDERS = {
    "a": [candidate(1, 9), candidate(2, 4), candidate(5, 0)],
    "b": [candidate(1, 2), candidate(3, 1), candidate(6, 0)],
}


def total_kl(ladders: dict[str, list[Candidate]], plan: Plan) -> float:
    return sum(ladders[path][level].kl for path, level in plan.items())


def every_plan(ladders: dict[str, list[Candidate]]) -> list[Plan]:
    levels = [range(len(found)) for found in ladders.values()]
    return [dict(zip(ladders, chosen, strict=True)) for chosen in itertools.product(*levels)]


def random_ladders(seed: int) -> dict[str, list[Candidate]]:
    draw = random.Random(seed)
    return {
        path: ladder([candidate(draw.random(), draw.random()) for _ in range(5)]) for path in "abc"
    }


def test_ladder_keeps_what_nothing_else_is_as_fast_and_as_faithful_as() -> None:
    best, slow, worse, same, top = (
        candidate(*pair) for pair in ((1, 5), (4, 2), (2, 6), (4, 3), (9, 0))
    )
    assert ladder([slow, top, worse, best, same]) == [best, slow, top]


def test_first_upgrade_lowers_the_kl_most_per_time() -> None:
    plans = list(upgrades(LADDERS, {"a": 0, "b": 0}))
    assert plans[0] == {"a": 1, "b": 0}  # 5 a ms; then 9 / 4, 1 / 2, 2 / 5
    assert plans[1:] == [{"a": 2, "b": 0}, {"a": 0, "b": 1}, {"a": 0, "b": 2}]
    assert list(upgrades(LADDERS, {"a": 2, "b": 2})) == []


def test_uniform_plans_take_what_is_better_in_a_layer_and_no_slower() -> None:
    ms = {"a": {"x": 2.5, "y": 5.0, "only a": 1.0}, "b": {"x": 3.0, "y": 1.0}}
    assert uniform(LADDERS, ms) == [{"a": 1, "b": 1}, {"a": 2, "b": 0}]
    assert highest_within(LADDERS["a"], 0.5) == 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_found_plan_holds_and_cannot_be_cut(seed: int, share: float) -> None:
    ladders = random_ladders(seed)
    allowed = total_kl(ladders, {p: len(r) - 1 for p, r in ladders.items()}) + share
    plan = fastest_that_holds(ladders, [], lambda p: total_kl(ladders, p) <= allowed + 1e-12)
    assert total_kl(ladders, plan) <= allowed + 1e-12
    for path in plan:
        for lower in range(plan[path]):
            assert total_kl(ladders, {**plan, path: lower}) > allowed
    best = min(
        total_ms(ladders, p) for p in every_plan(ladders) if total_kl(ladders, p) <= allowed + 1e-12
    )
    assert total_ms(ladders, plan) <= 2 * best


def test_plan_that_is_the_same_everywhere_is_found_where_upgrades_go_past_it() -> None:
    """What holds need not follow from the KL of single layers."""
    start = {"a": 1, "b": 1}
    only = (start, {"a": 2, "b": 2})
    assert fastest_that_holds(LADDERS, [], lambda plan: plan in only) == {"a": 2, "b": 2}
    assert fastest_that_holds(LADDERS, [start], lambda plan: plan in only) == start


def test_most_time_is_taken_back_first() -> None:
    asked = []

    def holds(plan: Plan) -> bool:
        asked.append(plan)
        return plan["a"] >= 1

    assert cut(LADDERS, {"a": 2, "b": 2}, holds) == {"a": 1, "b": 0}
    assert asked[0] == {"a": 2, "b": 0}


@pytest.mark.parametrize("limit", [2, 4, 5.5, 7, 11, 100])
def test_most_faithful_plan_fits_and_has_no_upgrade_that_does(limit: float) -> None:
    plan = most_faithful_that_fits(LADDERS, lambda p: total_ms(LADDERS, p) <= limit)
    assert plan is not None
    assert total_ms(LADDERS, plan) <= limit
    assert all(total_ms(LADDERS, higher) > limit for higher in upgrades(LADDERS, plan))


def test_nothing_fits_where_the_fastest_does_not() -> None:
    assert most_faithful_that_fits(LADDERS, lambda p: total_ms(LADDERS, p) <= 1.9) is None


SHARES = st.floats(0.01, 1.0)


@pytest.mark.slow
@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=6), st.sets(st.integers(0, 5)))
def test_search_in_one_layer_equals_brute_force(pairs: list, holding: set[int]) -> None:
    """Whatever it is that holds; the search is greedy, so of many layers this is not so."""
    ladders = {"a": ladder([candidate(*pair) for pair in pairs])}
    top = {"a": len(ladders["a"]) - 1}
    chosen = [plan for plan in every_plan(ladders) if plan == top or plan["a"] in holding]
    assert fastest_that_holds(ladders, [], lambda plan: plan in chosen) == chosen[0]


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=5), st.floats(0.0, 5.0))
def test_search_in_layers_alike_in_time_equals_brute_force(pairs: list, limit: float) -> None:
    """Two candidates a layer, of the same two times everywhere: as of a model's equal layers."""
    ladders = {
        f"{number}": [candidate(1.0, low + high), candidate(2.0, high)]
        for number, (low, high) in enumerate(pairs)
    }
    teacher = total_kl(ladders, dict.fromkeys(ladders, 1))
    plans = every_plan(ladders)
    allowed = [plan for plan in plans if total_kl(ladders, plan) <= teacher + limit]
    found = fastest_that_holds(ladders, [], lambda plan: plan in allowed)
    assert total_ms(ladders, found) == min(total_ms(ladders, plan) for plan in allowed)
    time = len(ladders) + limit
    fitting = [plan for plan in plans if total_ms(ladders, plan) <= time]
    best = most_faithful_that_fits(ladders, lambda plan: plan in fitting)
    assert best is not None
    assert total_kl(ladders, best) == pytest.approx(min(total_kl(ladders, p) for p in fitting))
