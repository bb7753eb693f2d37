"""The command line: which parts, how many cases of each, where the counts go."""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.reliability import child
from tests.reliability.bench import Base, Bench, Case, Trial, make_bases

PARTS = ("kills", "ranks", "pairs", "damages", "changes", "records", "settings", "disk")
BASES: dict[str, Base] = {}
SHOWN = 10
"""Failures of a kind that are printed."""


def main() -> int:
    arguments = parsed()
    started = time.time()
    child.preload()
    with folder(arguments.keep) as root:
        os.environ["TMPDIR"] = str(root)
        parts = [arguments.only.split("/")[0]] if arguments.only else arguments.parts or PARTS
        needed = set().union(*(module(part).BASES for part in parts))
        BASES.update(make_bases(root / "bases", needed))
        results = {
            part: run_part(part, chosen_cases(part, arguments), root, arguments) for part in parts
        }
    print(table(results))
    if arguments.out:
        write(arguments, results, started)
    return int(any(trial["failure"] for trials in results.values() for trial in trials))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, help="cases of each part, drawn from all of them")
    parser.add_argument("--seed", type=int, default=0, help="of every random number")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="the cases whose name begins so, as a failure names them")
    parser.add_argument("--out", type=Path, help="all trials as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    return arguments


@contextlib.contextmanager
def folder(keep: bool) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="reliability-"))
    try:
        yield root
    finally:
        if keep:
            print(f"Kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)


def module(part: str) -> Any:
    return importlib.import_module(f"tests.reliability.{part}")


def chosen_cases(part: str, arguments: argparse.Namespace) -> list[Case]:
    """Those that `--only` names, out of all; else those of the part, or so many of them."""
    cases: list[Case] = module(part).cases(BASES, all_of_them=arguments.only is not None)
    if arguments.only:
        named = [case for case in cases if f"{case.id}/".startswith(f"{arguments.only}/")]
        return named or sys.exit(f"error: there is no case {arguments.only}")
    if arguments.count is not None and arguments.count < len(cases):
        drawn = random.Random(arguments.seed).sample(range(len(cases)), arguments.count)
        return [cases[index] for index in sorted(drawn)]
    return cases


def run_part(
    part: str, cases: list[Case], root: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The trials of all cases; one line when the part ends, and every failure's command."""
    started = time.monotonic()
    trials = []
    with ProcessPoolExecutor(
        arguments.workers, get_context("fork"), child.die_with_parent, (os.getpid(),)
    ) as pool:
        jobs = [pool.submit(run_case, case, root, arguments) for case in cases]
        for job in jobs:
            trials += job.result()
            show_progress(part, len(trials), started)
    print(f"{part}: {summary(trials)}; {time.monotonic() - started:.0f} s", flush=True)
    shown: Counter[str] = Counter()
    for trial in trials:
        shown[trial["outcome"]] += bool(trial["failure"])
        if trial["failure"] and shown[trial["outcome"]] <= SHOWN:
            print(f"  {trial['outcome']}: {trial['failure']}\n    {trial['again']}", flush=True)
    for outcome, count in shown.items():
        if count > SHOWN:
            print(f"  {outcome}: {count - SHOWN} more; --out FILE has them all", flush=True)
    return trials


def run_case(case: Case, root: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rng = random.Random(f"{arguments.seed}/{case.id}")
    bench = Bench(root / hashlib.sha256(case.id.encode()).hexdigest()[:12], BASES, rng)
    try:
        found = case.check(bench, case)
    except Exception:
        found = [Trial("harness broken", traceback.format_exc()[-1500:])]
    if strays := bench.strays():
        found.append(Trial("written outside", ", ".join(map(str, strays[:3]))))
    if not arguments.keep:
        shutil.rmtree(bench.root, ignore_errors=True)
    again = f"python -m tests.reliability --seed {arguments.seed} --only {shlex.quote(case.id)}"
    return [{"case": case.id, **vars(trial), "again": again} for trial in found]


def show_progress(part: str, trials: int, started: float) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{part}: {trials} trials, {time.monotonic() - started:.0f} s",
            end="\r",
            file=sys.stderr,
        )


def summary(trials: list[dict[str, Any]]) -> str:
    outcomes = Counter(trial["outcome"] for trial in trials)
    failed = sum(bool(trial["failure"]) for trial in trials)
    words = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return f"{len(trials)} trials, {failed} failed: {words}"


def counts(trials: list[dict[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for trial in trials:
        total.update(trial["counts"])
    return total


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "\n| part | cases | trials | held | failed | outcomes | of them |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for part, trials in results.items():
        good, bad = (
            Counter(trial["outcome"] for trial in trials if bool(trial["failure"]) is failed)
            for failed in (False, True)
        )
        held = ", ".join(f"{count} {outcome}" for outcome, count in good.most_common())
        failed = ", ".join(f"**{count} {outcome}**" for outcome, count in bad.most_common())
        cases = len({trial["case"] for trial in trials})
        extra = ", ".join(f"{count} {word}" for word, count in sorted(counts(trials).items()))
        words = "; ".join(filter(None, (held, failed)))
        lines.append(
            f"| {part} | {cases} | {len(trials)} | {good.total()} | {bad.total()} "
            f"| {words} | {extra} |"
        )
    return "\n".join(lines)


def write(arguments: argparse.Namespace, results: dict[str, Any], started: float) -> None:
    import asap_exp
    from asap_exp.core import manifest

    record = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started),
        "seed": arguments.seed,
        "count": arguments.count,
        "package": Path(asap_exp.__file__).parent.name,
        "code": manifest.code_version(),
        "versions": manifest.versions(),
        "hardware": manifest.hardware(),
        "parts": {
            part: {
                "outcomes": Counter(trial["outcome"] for trial in trials),
                "counts": counts(trials),
                "trials": trials,
            }
            for part, trials in results.items()
        },
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
