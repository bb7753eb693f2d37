"""Two stages of one results folder at once: one runs, the other says who holds it or waits."""

import socket
import time

from tests.reliability.bench import EVAL, MAP, REPORT, TIMEOUT, TINY, Base, Bench, Case, Trial
from tests.reliability.child import Ended
from tests.reliability.facts import difference, facts
from tests.reliability.verdicts import broken, sentence

LAST = [*TINY, "recipe.keep=last"]
KINDS: dict[str, tuple[str, list[str], list[str], str | None, str, int]] = {
    "train-best": ("train", TINY, [], None, "train", 6),
    "train-last": ("train", LAST, [], None, "train-last", 10),
    "train-never": ("train", TINY, ["resume=never"], None, "train", 8),
    "distill": ("distill", MAP, [], "train", "map", 6),
    "evaluate": ("evaluate", EVAL, [], "map", "evaluated", 6),
    "report": ("report", REPORT, [], "evaluated", "reported", 4),
}
"""Stage, overrides, the second one's further overrides, start, undisturbed result, cases."""

BASES = {base for kind in KINDS.values() for base in (kind[3], kind[4]) if base}


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    return [
        Case("pairs", f"{kind}-{number}", check, (kind, number % 2 == 1))
        for kind, (*_, count) in KINDS.items()
        for number in range(count)
    ]


def check(bench: Bench, case: Case) -> list[Trial]:
    """In every second case the second is killed as soon as the first has ended."""
    kind, kill_second = case.detail
    stage, overrides, further, start, end, _ = KINDS[kind]
    base = bench.bases[end]
    if start is not None:
        bench.copy(start)
    first = bench.start(stage, *overrides)
    time.sleep(bench.rng.uniform(0, base.seconds))
    began_while_held = not first.over()
    second = bench.start(stage, *overrides, *further)
    if not kill_second:
        ends = [first.wait(TIMEOUT), second.wait(TIMEOUT)]
    else:
        ends = [first.wait(TIMEOUT), second.wait(0.0)]
    counts = {"side by side": int(began_while_held)}
    if kill_second and ends[1].timed_out:
        ends.pop()
        counts["second killed"] = 1
    for ended in ends:
        if failed := broken(ended):
            return [Trial(f"pair: {failed.outcome}", failed.failure, counts)]
    refused = [ended for ended in ends if ended.status == 2]
    holders = {ended.pid for ended in ends if ended.status == 0} or {first.pid}
    if kill_second and len(ends) == 1 and refused and names_holder(refused[0], {second.pid}):
        return [Trial("pair: one refused", counts=counts)]  # the one killed was the holder
    if len(refused) == len(ends):
        return [Trial("pair: none ran", refused[0].last_words, counts)]
    # What the first has finished must hold, whatever the second was doing.
    differs = difference(facts(stage, bench.results), facts(stage, base.results))
    replaced = bool(further) and len(ends) < 2
    if differs and not replaced:
        return [Trial("pair: wrong result", differs, counts)]
    if any(not names_holder(ended, holders) for ended in refused):
        return [Trial("pair: unnamed holder", refused[0].last_words, counts)]
    return [Trial("pair: one refused" if refused else "pair: equal", counts=counts)]


def names_holder(ended: Ended, holders: set[int]) -> bool:
    said = sentence(ended)
    return socket.gethostname() in said or any(str(pid) in said for pid in holders)
