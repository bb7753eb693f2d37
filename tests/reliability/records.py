"""Values of exchanged records damaged, and texts in them that are markup, formulas or paths."""

import csv
import json
import math
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

from tests.reliability.bench import REPORT, Base, Bench, Case, Trial, remove
from tests.reliability.changes import at, replaced
from tests.reliability.child import Ended
from tests.reliability.facts import difference, facts, load, unsealed
from tests.reliability.schema import Place, Schema, kind, representatives, shape
from tests.reliability.verdicts import judged

BASES = {"all-maps"}
RECORD = "a-record.json"
PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "records"

DAMAGED = 720
INJECTED = 120
"""Cases of each record, drawn from all of them, which would take hours."""

NAMES = (("data",), ("device",), ("run",), ("task",), ("name",), ("dtype",), ("rows", "*", "label"))
"""Texts that tables show or paths contain: each with every kind of text."""

VALUES: dict[str, Any] = {
    "null": None,
    "text": "text",
    "number": 7,
    "list": [],
    "nan": math.nan,
    "inf": math.inf,
    "1e308": 1e308,
    "-5": -5,
    "true": True,
}
TEXTS: dict[str, str] = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "pipe": "a|b",
    "row": "x |\n| forged | row |",
    "formula": "=cmd()",
    "at": "@SUM(1)",
    "mathtext": "$x_{$",
    "dollars": "$5 and $6",
    "path": "../../../../x",
    "absolute": "ROOT/elsewhere/x",
    "escape": "\x1b[31mred",
    "nul": "a\x00b",
    "long": 300 * "x",
}


def sources(evaluated: Path) -> dict[str, Path]:
    """A published evaluation and benchmark, and a fresh evaluation of two maps."""
    benchmarks = sorted(PUBLISHED.glob("benchmark/*.json"), key=lambda file: file.stat().st_size)
    (fresh,) = evaluated.glob("runs/*/*/*/evaluate/*/metrics.json")
    return {
        "published": min(PUBLISHED.glob("digits-*.json")),
        "benchmark": benchmarks[1],
        "fresh": fresh,
    }


def source_record(file: Path) -> Any:
    """Unsealed where it can be: who forges a record leaves out its hash too."""
    record = load(file)
    return unsealed(record) if "manifests" in record else record


@cache
def schema(evaluated: Path, of_benchmarks: bool) -> Schema:
    files = sorted(PUBLISHED.glob("benchmark/*.json" if of_benchmarks else "*.json"))
    fresh = [] if of_benchmarks else [sources(evaluated)["fresh"]]
    return Schema([load(file) for file in [*files, *fresh]])


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    found: list[Case] = []
    for source, file in sources(bases["all-maps"].results).items():
        record = source_record(file)
        damaged: list[Case] = []
        injected: list[Case] = []
        for place in representatives(record):
            name = f"{source}/{'.'.join(map(str, place))}"
            old = at(record, place)
            for word in ["deleted", *VALUES]:
                if word == "deleted" or repr(VALUES[word]) != repr(old):
                    damaged.append(Case("records", f"{name}/{word}", check, (source, place, word)))
            if isinstance(old, str):
                texts = [
                    Case("records", f"{name}/{word}", check, (source, place, word))
                    for word in TEXTS
                ]
                (found if shape(place) in NAMES else injected).extend(texts)
        for of_a_kind, count in ((damaged, DAMAGED), (injected, INJECTED)):
            drawn = min(count, len(of_a_kind))
            found += of_a_kind if all_of_them else random.Random(0).sample(of_a_kind, drawn)
    return found


CONTROLS: dict[str, dict[str, Any]] = {}
"""By source, what its report shows; filled in every worker."""


def check(bench: Bench, case: Case) -> list[Trial]:
    source, place, word = case.detail
    evaluated = bench.bases["all-maps"].results
    record = source_record(sources(evaluated)[source])
    if source not in CONTROLS:
        CONTROLS[source] = reported(bench, source, record)[1]
    group, new = "damaged", VALUES.get(word)
    if word in TEXTS:
        group, new = "injected", TEXTS[word].replace("ROOT", str(bench.root))
    changed = without(record, place) if word == "deleted" else replaced(record, place, new)
    ended, shown = reported(bench, source, changed)
    trial = judged(ended, shown, CONTROLS[source], RECORD)
    if trial.outcome == "other result accepted" and group == "injected":
        wrong = marked_up(bench, source, replaced(record, place, "plain"))
        trial = Trial("markup passed on", wrong) if wrong else Trial("shown as plain text")
    elif trial.outcome == "other result accepted":
        found = "absent" if word == "deleted" else kind(new)
        if schema(evaluated, source == "benchmark").allows(place, found):
            trial = Trial("another valid record")
    return [Trial(trial.outcome, trial.failure, {f"{group}: {trial.outcome}": 1})]


def reported(bench: Bench, source: str, record: Any) -> tuple[Ended, dict[str, Any]]:
    """How the report of this record alone ends, and what it shows."""
    remove(bench.results)
    folder = bench.report / "records" / ("benchmark" if source == "benchmark" else "")
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    ended = bench.run("report", *REPORT)
    made = facts("report", bench.results)
    return ended, made.get("shown", made)


def without(tree: Any, place: Place) -> Any:
    parent = at(tree, place[:-1])
    if isinstance(parent, list):
        return replaced(tree, place[:-1], [v for i, v in enumerate(parent) if i != place[-1]])
    left = {key: value for key, value in parent.items() if key != place[-1]}
    return replaced(tree, place[:-1], left) if place[:-1] else left


def tables(report: Path) -> dict[str, list[int]]:
    """By file, how many cells each row of its tables has."""
    found = {}
    for file in report.glob("*.md"):
        rows = [line for line in file.read_text().splitlines() if line.startswith("|")]
        found[file.name] = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    for file in report.glob("*.csv"):
        found[file.name] = [len(row) for row in csv.reader(file.open(newline=""))]
    return found


def marked_up(bench: Bench, source: str, neutral: Any) -> str:
    """What in the tables or the page is more than text; empty where nothing is.

    Their rows and cells are as many as with a plain word in its place.
    """
    for file in [*bench.report.glob("*.md"), *bench.report.glob("*.html")]:
        if found := re.search(r"(?<!\\)<(script>alert|img src=x)", file.read_text()):
            return f"{file.name} has a raw {found.group()}"
    for file in bench.report.glob("*.csv"):
        for cell in (cell for row in csv.reader(file.open(newline="")) for cell in row):
            if cell[:1] in ("=", "+", "@", "\t", "\r"):
                return f"{file.name} has the formula {cell!r}"
    found_rows = tables(bench.report)
    reported(bench, source, neutral)
    differs = difference(found_rows, tables(bench.report))
    return differs and f"rows or cells of tables: {differs}"
