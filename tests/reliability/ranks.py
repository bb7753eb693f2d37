"""Kills of a training on two devices: one rank, or the process that started them, at any time."""

import os
import signal
import time
from pathlib import Path

from tests.reliability.bench import TWO, Base, Bench, Case, Trial
from tests.reliability.child import Ended, Stage
from tests.reliability.facts import difference, facts, load
from tests.reliability.kills import begun, manifests, rerun, unreadable
from tests.reliability.verdicts import TRACEBACK

BASE = "train-two"
BASES = {BASE}
CASES = 26
IN_A_ROW = (1, 2, 3)
LINGERS = 20.0
"""Seconds in which the other processes must have ended, once the first is over."""


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    return [
        Case("ranks", f"train-{n}", check, (IN_A_ROW[n % len(IN_A_ROW)],)) for n in range(CASES)
    ]


def check(bench: Bench, case: Case) -> list[Trial]:
    base, trials = bench.bases[BASE], []
    for _ in range(*case.detail):
        before = manifests(bench.results)
        stage = bench.start("train", *TWO)
        wait_for_moment(stage, bench, before)
        alive = processes(stage.pid)
        victim = bench.rng.choice(alive)
        os.kill(victim, signal.SIGKILL)
        trials.append(killed(stage, bench, victim, len(alive), before))
        trials += unreadable(bench.results)
    return [*trials, rerun(bench, "train", TWO, base.results)]


def wait_for_moment(stage: Stage, bench: Bench, before: dict[Path, bytes]) -> None:
    """Wait for a moment of the run: one in four at any time, the others while it trains."""
    base, rng = bench.bases[BASE], bench.rng
    (manifest,) = manifests(base.results)
    training = load(manifest)["wall_seconds"]
    if rng.random() < 0.25:
        until = stage.started + rng.uniform(0.02, base.seconds)
    else:
        while not begun(before, manifests(bench.results)) and not stage.over():
            time.sleep(0.01)
        until = time.monotonic() + rng.uniform(0.0, training)
    while time.monotonic() < until and not stage.over():
        stage.listen()
        time.sleep(0.005)


def processes(parent: int) -> list[int]:
    """The process of rank 0, which is the parent, and those that it has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [parent, *map(int, children)]


def killed(stage: Stage, bench: Bench, victim: int, alive: int, before: dict) -> Trial:
    """All processes end, and who is left says which one was lost; nothing else is printed."""
    whom = "parent" if victim == stage.pid else "rank 1"
    counts = {f"kills of {whom}": 1, f"kills with {alive} processes": 1}
    while not stage.over() and time.monotonic() < stage.started + 90:
        stage.listen()
        time.sleep(0.02)
    left = lingering(stage.pid)
    ended = stage.wait(90)
    said = begun(before, manifests(bench.results))
    counts |= {f"manifest {word}": 1 for word in said}
    if ended.timed_out:
        return Trial("kill: no end", f"{whom}: still there after 90 s: {ended.text}", counts)
    if left:
        return Trial("kill: processes left", f"{whom}: {left} after {LINGERS} s", counts)
    equal = not difference(facts("train", bench.results), facts("train", bench.bases[BASE].results))
    if ended.status == 0 and equal:
        return Trial("kill: came too late", counts=counts)
    if TRACEBACK in ended.text:
        return Trial("kill: traceback", f"{whom}: {ended.text[-1500:]}", counts)
    return Trial(*verdict(ended, whom, said), counts=counts)


def verdict(ended: Ended, whom: str, said: list[str]) -> tuple[str, str]:
    expected = 128 + signal.SIGKILL if whom == "parent" else 2
    if ended.status != expected:
        return "kill: wrong status", f"{whom}: {ended.last_words}"
    if whom != "parent" and "was killed by SIGKILL" not in ended.err:
        return "kill: not said", f"{whom}: {ended.last_words}"
    if whom != "parent" and not set(said) <= {"failed", "finished"}:
        return "kill: wrong manifest", f"{whom}: manifest {said}"
    return "kill: stopped", ""


def lingering(group: int) -> list[int]:
    """Processes of a group besides the first, which has ended, that do not end soon."""
    until = time.monotonic() + LINGERS
    while others := members(group):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return others


def members(group: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state not in "ZX" and int(stat.parent.name) != group:
            found.append(int(stat.parent.name))
    return found
