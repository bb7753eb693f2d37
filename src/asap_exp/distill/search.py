"""Which candidate each layer takes: greedy upgrades from the fastest plan, pure bookkeeping.

A layer's candidates form a ladder, from the fastest to the most faithful. What a candidate costs is
measured for its layer alone; whether a whole plan holds is asked of the caller, who measures it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from asap_exp.attention import Attention


@dataclass(frozen=True)
class Candidate:
    """What a layer may become.

    `label` names it; `ms` is the latency of the layer; `kl` is the KL of the predictions, in nats,
    with only this layer replaced.
    """

    label: str
    attend: Attention
    ms: float
    kl: float


Ladders = Mapping[str, Sequence[Candidate]]
Plan = dict[str, int]
"""The level of each layer: its place in the layer's ladder, by layer path."""

Holds = Callable[[Plan], bool]

STARTS = 3
"""Number of uniform plans that the search goes on from."""


def ladder(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front, fastest first: a slower candidate has a smaller KL."""
    levels: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.ms, c.kl)):
        if not levels or candidate.kl < levels[-1].kl:
            levels.append(candidate)
    return levels


def fastest(ladders: Ladders) -> Plan:
    return dict.fromkeys(ladders, 0)


def upgrades(ladders: Ladders, plan: Plan) -> Iterator[Plan]:
    """Plans with one layer on a higher level; first the one that lowers the KL most per time."""
    steps = []
    for path, levels in ladders.items():
        now = levels[plan[path]]
        for number, level in enumerate(levels[plan[path] + 1 :], start=plan[path] + 1):
            saved = (now.kl - level.kl) / max(level.ms - now.ms, 1e-9)
            steps.append((saved, path, number))
    for _, path, number in sorted(steps, reverse=True):
        yield {**plan, path: number}


def uniform(ladders: Ladders, ms: Mapping[str, Mapping[str, float]]) -> list[Plan]:
    """The plans with one option in all layers, fastest first, for every option they share.

    Where another option of a layer is as fast and as faithful, that layer takes the other one.
    `ms` is by layer and option.
    """
    shared = set.intersection(*(set(options) for options in ms.values()))
    plans = [
        {path: highest_within(levels, ms[path][label]) for path, levels in ladders.items()}
        for label in sorted(shared)
    ]
    return sorted(plans, key=lambda plan: total_ms(ladders, plan))


def highest_within(levels: Sequence[Candidate], ms: float) -> int:
    """The most faithful candidate that takes at most `ms`."""
    return max(number for number, level in enumerate(levels) if number == 0 or level.ms <= ms)


def fastest_that_holds(ladders: Ladders, starts: Sequence[Plan], holds: Holds) -> Plan:
    """The fastest plan found that holds: by upgrades from below, and by cuts from `starts`.

    The plan of the topmost levels, which are the teacher's own, is taken to hold.
    """
    plan = fastest(ladders)
    while not holds(plan) and (higher := next(upgrades(ladders, plan), None)):
        plan = higher
    holding = [start for start in starts if holds(start)]
    found = [cut(ladders, start, holds) for start in (plan, *holding[:STARTS])]
    return min(found, key=lambda plan: total_ms(ladders, plan))


def cut(ladders: Ladders, plan: Plan, holds: Holds) -> Plan:
    """Lowers one layer after the other while the plan holds; the largest saving of time first."""
    while True:
        lower = sorted(
            ({**plan, path: number} for path, level in plan.items() for number in range(level)),
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
    """Latency of the attention layers alone, in ms."""
    return sum(ladders[path][level].ms for path, level in plan.items())
