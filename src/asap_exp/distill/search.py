"""Which candidate each layer takes: greedy upgrades from the fastest plan, pure bookkeeping.

A layer's candidates form a ladder, from the fastest to the most faithful. What a candidate costs is
measured for its layer alone; whether a whole plan holds is asked of the caller, who measures it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from asap_exp.attention import Attention


@dataclass(frozen=True)
class Candidate:
    """`words` name it, its layer takes `ms`, and with it alone the predictions' KL is `damage`."""

    words: str
    attend: Attention
    ms: float
    damage: float


Ladders = Mapping[str, Sequence[Candidate]]
Plan = dict[str, int]
"""The rung that each layer stands on, by layer path."""

Holds = Callable[[Plan], bool]

STARTS = 3
"""From how many of the plans that are the same in every layer the search goes on."""


def ladder(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other is as fast and as faithful as: slower means less damage."""
    rungs: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.ms, c.damage)):
        if not rungs or candidate.damage < rungs[-1].damage:
            rungs.append(candidate)
    return rungs


def fastest(ladders: Ladders) -> Plan:
    return dict.fromkeys(ladders, 0)


def upgrades(ladders: Ladders, plan: Plan) -> Iterator[Plan]:
    """Plans with one layer on a higher rung; first the one that saves most damage per time."""
    steps = []
    for path, rungs in ladders.items():
        now = rungs[plan[path]]
        for number, rung in enumerate(rungs[plan[path] + 1 :], start=plan[path] + 1):
            saved = (now.damage - rung.damage) / max(rung.ms - now.ms, 1e-9)
            steps.append((saved, path, number))
    for _, path, number in sorted(steps, reverse=True):
        yield {**plan, path: number}


def uniform(ladders: Ladders, ms: Mapping[str, Mapping[str, float]]) -> list[Plan]:
    """For every option that all layers have, the plan of it everywhere, from the fastest on.

    Where something else is as fast and as faithful in a layer, that layer takes that instead.
    `ms` is by layer and option.
    """
    shared = set.intersection(*(set(options) for options in ms.values()))
    plans = [
        {path: highest_within(rungs, ms[path][words]) for path, rungs in ladders.items()}
        for words in sorted(shared)
    ]
    return sorted(plans, key=lambda plan: total_ms(ladders, plan))


def highest_within(rungs: Sequence[Candidate], ms: float) -> int:
    """The most faithful rung that takes no longer than `ms`."""
    return max(number for number, rung in enumerate(rungs) if number == 0 or rung.ms <= ms)


def fastest_that_holds(ladders: Ladders, starts: Sequence[Plan], holds: Holds) -> Plan:
    """The fastest plan found that holds: by upgrades from below, and by cuts from `starts`.

    The topmost rungs, all together, are taken to hold: the teacher's own.
    """
    plan = fastest(ladders)
    while not holds(plan) and (higher := next(upgrades(ladders, plan), None)):
        plan = higher
    holding = [start for start in starts if holds(start)]
    found = [cut(ladders, start, holds) for start in (plan, *holding[:STARTS])]
    return min(found, key=lambda plan: total_ms(ladders, plan))


def cut(ladders: Ladders, plan: Plan, holds: Holds) -> Plan:
    """Takes back, one layer after the other, what the plan holds without; most time first."""
    while True:
        lower = sorted(
            ({**plan, path: number} for path, rung in plan.items() for number in range(rung)),
            key=lambda candidate: total_ms(ladders, candidate),
        )
        held = next((candidate for candidate in lower if holds(candidate)), None)
        if held is None:
            return plan
        plan = held


def most_faithful_that_fits(ladders: Ladders, fits: Holds) -> Plan | None:
    """Upgrades for as long as one of them fits; None where not even the fastest plan does."""
    plan = fastest(ladders)
    if not fits(plan):
        return None
    while higher := next((p for p in upgrades(ladders, plan) if fits(p)), None):
        plan = higher
    return plan


def total_ms(ladders: Ladders, plan: Plan) -> float:
    """Of the attention layers alone."""
    return sum(ladders[path][rung].ms for path, rung in plan.items())
