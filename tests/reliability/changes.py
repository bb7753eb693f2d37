"""One value of a finished run's files changed, to another of the same type."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.reliability.altered import NEEDED, trials
from tests.reliability.bench import Base, Bench, Case, Trial, run_of

BASES = NEEDED

FILES = (
    "config.yaml",
    "manifest.json",
    "distill/*/asap.json",
    "distill/*/fidelity.json",
    "distill/*/manifest.json",
    "evaluate/*/metrics.json",
)
OF_METRICS = 60
"""Values of the largest file, of more than a thousand."""

UNCHECKED = {
    *("code", "command", "ended", "hardware", "started", "versions", "wall_seconds"),
    *(
        "train_seconds",
        "validate_seconds",
        "compile_seconds",
        "accelerator",
        "callbacks",
        "logger",
        "resume",
    ),
}
"""Facts of a manifest, and keys of its configuration, that follow from nothing else in the run."""

Place = tuple[str | int, ...]


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    run = run_of(bases["reported"].results)
    found = []
    for pattern in FILES:
        (file,) = run.glob(pattern)
        places = list(leaves(parsed(file)))
        if file.name == "metrics.json" and not all_of_them:
            places = places[:: max(1, len(places) // OF_METRICS)]
        for place in places:
            name = f"{pattern.replace('*', '_')}/{'.'.join(map(str, place))}"
            found.append(Case("changes", name, check, (pattern, place)))
    return found


def check(bench: Bench, case: Case) -> list[Trial]:
    pattern, place = case.detail

    def alter(file: Path, _: Path) -> None:
        tree = parsed(file)
        written(file, replaced(tree, place, changed(at(tree, place))))

    of_manifest = pattern.endswith("manifest.json")
    free = of_manifest and bool(UNCHECKED.intersection(place[:2]))
    # An evaluation runs with the threads that config.yaml asks for, and says so.
    free |= place == ("trainer", "cpu_threads")
    return [
        Trial("unchecked fact", counts=trial.counts)
        if free and trial.outcome == "other result accepted"
        else trial
        for trial in trials(bench, pattern, alter, str(place[-1]) if place else pattern)
    ]


def parsed(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    return yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)


def written(file: Path, tree: Any) -> None:
    dump = yaml.safe_dump(tree) if file.suffix == ".yaml" else json.dumps(tree, indent=1)
    file.write_text(dump, encoding="utf-8")


def leaves(tree: Any, place: Place = ()) -> Iterator[Place]:
    """The places of all values, and of lists that are not empty as a whole."""
    if isinstance(tree, dict) or (isinstance(tree, list) and tree):
        if isinstance(tree, list):
            yield place
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from leaves(value, (*place, key))
    else:
        yield place


def at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def replaced(tree: Any, place: Place, value: Any) -> Any:
    """A copy with another value at `place`."""
    tree = copy.deepcopy(tree)
    if not place:
        return value
    at(tree, place[:-1])[place[-1]] = value
    return tree


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"other-{value}"
    return [] if value else 1
