"""Choice of a candidate per layer: greedy upgrades from the fastest plan, without measuring.

A layer's candidates form a ladder, from the fastest to the most faithful. The cost of a candidate
was measured for its layer alone; the caller measures whether a whole plan holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from asap_exp.attention import Attention


@dataclass(frozen=True)
class Candidate:
    """Attention that a layer may become.

    `label` names it; `ms` is the latency of the layer; `kl` is the KL of the predictions, in nats,
    with only this layer replaced.
    """

    label: str
    attend: Attention
    ms: float
    kl: float


Ladders = Mapping[str, Sequence[Candidate]]
Plan = dict[str, int]
"""Level of each layer by layer path: its index in the layer's ladder."""

Holds = Callable[[Plan], bool]

STARTS = 3
"""Number of uniform plans from which the search continues."""


def ladder(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the Pareto front, fastest first: a slower candidate has a smaller KL."""
    levels: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.ms, c.kl)):
        if not levels or candidate.kl < levels[-1].kl:
            levels.append(candidate)
    return levels


def fastest(ladders: Ladders) -> Plan:
    return dict.fromkeys(ladders, 0)


def upgrades(ladders: Ladders, plan: Plan) -> Iterator[Plan]:
    """Yield plans with one layer a level higher, largest decrease of KL per time first."""
    steps = []
    for path, levels in ladders.items():
        now = levels[plan[path]]
        for number, level in enumerate(levels[plan[path] + 1 :], start=plan[path] + 1):
            saved = (now.kl - level.kl) / max(level.ms - now.ms, 1e-9)
            steps.append((saved, path, number))
    for _, path, number in sorted(steps, reverse=True):
        yield {**plan, path: number}


def uniform(ladders: Ladders, ms: Mapping[str, Mapping[str, float]]) -> list[Plan]:
    """Return, for every option that all layers share, the plan with it in all layers.

    A layer with a better option that takes no longer takes that one. The fastest plan comes first.
    `ms` is by layer and option.
    """
    shared = set.intersection(*(set(options) for options in ms.values()))
    plans = [
        {path: highest_within(levels, ms[path][label]) for path, levels in ladders.items()}
        for label in sorted(shared)
    ]
    return sorted(plans, key=lambda plan: total_ms(ladders, plan))


def highest_within(levels: Sequence[Candidate], ms: float) -> int:
    """Return the level of the most faithful candidate that takes at most `ms`."""
    return max(number for number, level in enumerate(levels) if number == 0 or level.ms <= ms)


def fastest_that_holds(ladders: Ladders, starts: Sequence[Plan], holds: Holds) -> Plan:
    """Return the fastest plan found that holds: by upgrades from below, and by cuts from `starts`.

    The plan of the topmost levels, the teacher's own attention, is assumed to hold.
    """
    plan = fastest(ladders)
    while not holds(plan) and (higher := next(upgrades(ladders, plan), None)):
        plan = higher
    holding = [start for start in starts if holds(start)]
    found = [cut(ladders, start, holds) for start in (plan, *holding[:STARTS])]
    return min(found, key=lambda plan: total_ms(ladders, plan))


def cut(ladders: Ladders, plan: Plan, holds: Holds) -> Plan:
    """Lower one layer after another while the plan holds, the largest saving of time first."""
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
    """Upgrade layers as long as the plan fits; return None if not even the fastest plan does."""
    plan = fastest(ladders)
    if not fits(plan):
        return None
    while higher := next((p for p in upgrades(ladders, plan) if fits(p)), None):
        plan = higher
    return plan


def total_ms(ladders: Ladders, plan: Plan) -> float:
    """Return the latency of the attention layers alone, in ms."""
    return sum(ladders[path][level].ms for path, level in plan.items())
