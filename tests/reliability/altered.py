"""One file of a finished run is not what it was: what does every stage after it make of that?"""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.reliability.bench import COMMANDS, Bench, Trial, remove, run_of
from tests.reliability.child import Ended
from tests.reliability.facts import difference, facts, load
from tests.reliability.verdicts import broken, judged, sentence

NEEDED = {"reported", "other"}
RUN, OTHER = "*-s0", "*-s1"

STEPS = {
    **{stage: (stage, command) for stage, command in COMMANDS.items()},
    "distill-new": ("distill", [*COMMANDS["distill"], "calibration.seed=1"]),
}
"""A stage and its overrides; a map with another seed is not there yet."""

FILES: dict[str, tuple[str, ...]] = {
    "config.yaml": ("train", "distill", "distill-new", "evaluate", "report"),
    "manifest.json": ("train", "distill", "distill-new", "evaluate", "report"),
    "teacher.safetensors": ("train", "distill-new", "evaluate"),
    "checkpoints/last.ckpt": ("train",),
    "curves.json": ("train", "evaluate"),
    "logs/*/metrics.csv": ("train", "evaluate"),
    "distill/*/asap.json": ("distill", "evaluate"),
    "distill/*/asap.safetensors": ("distill", "evaluate"),
    "distill/*/fidelity.json": ("distill", "evaluate"),
    "distill/*/manifest.json": ("distill", "evaluate"),
    "evaluate/*/metrics.json": ("report",),
    "evaluate/*/manifest.json": ("report",),
    "records/*.json": ("report",),
}
"""Of a run, or of the report (records); and the steps that may read it."""

REPAIRED = {
    "teacher.safetensors": "train",
    "distill/*/asap.json": "distill",
    "distill/*/asap.safetensors": "distill",
}
"""What the command that a refusal names must make whole, and which stage's result it is."""

CONTROLS: dict[tuple[str, ...], dict[str, Any]] = {}
"""What each step makes of files that are as they were; filled once in every worker."""

Alter = Callable[[Path, Path], None]
"""Changes a file; the second path is the same file of another run."""


def arrange(bench: Bench, pattern: str, *, beside: bool = False) -> Path:
    """Fresh results with the file that `pattern` means; returns its path.

    Records are alone, without their run; a checkpoint is that of an interrupted run. `beside`:
    another run, newer and unharmed.
    """
    bench.copy("reported")
    if pattern.startswith("records/"):
        remove(bench.results / "runs")
        (file,) = bench.report.glob(pattern)
        return file
    run = run_of(bench.results)
    for path in bench.results.iterdir():
        if path.name != "runs":
            remove(path)
    if pattern.startswith("checkpoints/"):
        remove(run / "teacher.safetensors")
        manifest = load(run / "manifest.json")
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    if beside:
        source = bench.bases["other"].results / "runs"
        shutil.copytree(source, bench.results / "runs", dirs_exist_ok=True)
    (file,) = run.glob(pattern)
    return file


def control(bench: Bench, pattern: str, step: str, *, beside: bool = False) -> dict[str, Any]:
    leaf = OTHER if beside else RUN
    arranged = pattern.split("/")[0] if pattern.startswith(("records/", "checkpoints/")) else ""
    key = (arranged, step, leaf)
    if key not in CONTROLS:
        arrange(bench, pattern, beside=beside)
        stage, overrides = STEPS[step]
        ended = bench.run(stage, *overrides)
        assert ended.status == 0, ended.text
        CONTROLS[key] = outcome(bench, stage, leaf)
    return CONTROLS[key]


def outcome(bench: Bench, stage: str, leaf: str) -> dict[str, Any]:
    """What a stage made; of a report what it shows: its records are copies."""
    made = facts(stage, bench.results, leaf)
    return made.get("shown", made)


def other_file(bench: Bench, pattern: str) -> Path:
    results = bench.bases["other"].results
    if pattern.startswith("records/"):
        pattern = f"evaluate/*/metrics.{pattern.split('.')[-1]}"
    (file,) = run_of(results).glob(pattern)
    return file


def trials(bench: Bench, pattern: str, alter: Alter, *names: str) -> Iterator[Trial]:
    """Every step on a fresh copy with the altered file; a refusal's advice is followed once.

    A refusal has the file's name, or one of `names`.
    """
    advised = False
    for step in FILES[pattern]:
        stage, overrides = STEPS[step]
        undisturbed = control(bench, pattern, step)
        file = arrange(bench, pattern)
        alter(file, other_file(bench, pattern))
        ended = bench.run(stage, *overrides)
        trial = judged(ended, outcome(bench, stage, RUN), undisturbed, file.name, *names)
        yield said_by(step, trial)
        # A folder in a file's place is for its owner to move, as the sentence says.
        repairable = pattern in REPAIRED and not file.is_dir()
        if repairable and trial.outcome in ("sentence", "unnamed") and not advised:
            advised = True
            yield repaired(bench, pattern, step, ended)


def said_by(step: str, trial: Trial) -> Trial:
    failure = trial.failure and f"{step}: {trial.failure}"
    return Trial(trial.outcome, failure, {f"{step}: {trial.outcome}": 1})


def advice(said: str) -> tuple[str, list[str]] | None:
    """The command that a sentence names, in full or by its stage's words."""
    if found := re.search(r"python -m asap_exp\.(\w+)([^\n;`()]*)", said):
        return found[1], shlex.split(found[2].rstrip(" .,:"))
    if "resume=never" in said:
        return "train", [*COMMANDS["train"], "resume=never"]
    for stage in ("distill", "train"):
        if re.search(rf"\b{stage}\b", said, flags=re.IGNORECASE):
            return stage, COMMANDS[stage]
    return None


def repaired(bench: Bench, pattern: str, step: str, refusal: Ended) -> Trial:
    """Whether the run is whole again after the advice of a refusal, and the refused step runs."""
    command = advice(sentence(refusal))
    if command is None:
        return Trial("repair: no advice", refusal.last_words)
    advised, overrides = command
    words = f"{advised} {' '.join(overrides)}"
    ended = bench.run(advised, *overrides)
    if failed := broken(ended):
        return Trial(f"repair: {failed.outcome}", f"{words}: {failed.failure}")
    mended = REPAIRED[pattern]
    undisturbed = facts(mended, bench.bases["reported"].results, RUN)
    if differs := difference(facts(mended, bench.results, RUN), undisturbed):
        return Trial("repair: still damaged", f"{words}: {ended.last_words} {differs}")
    if mended == "distill":
        stage, further = STEPS[step]
        if (again := bench.run(stage, *further)).status:
            return Trial("repair: still refused", f"after {words}: {again.last_words}")
    return Trial("repair: whole again")


def neighbours(bench: Bench, pattern: str, alter: Alter) -> Iterator[Trial]:
    """The stages of another run, newer and unharmed, in the same results folder."""
    for step in ("distill", "evaluate", "report"):
        stage, overrides = STEPS[step]
        undisturbed = control(bench, pattern, step, beside=True)
        file = arrange(bench, pattern, beside=True)
        alter(file, other_file(bench, pattern))
        ended = bench.run(stage, *overrides)
        trial = judged(ended, outcome(bench, stage, OTHER), undisturbed, file.name)
        if ended.status == 2:
            trial = Trial("stopped others", ended.last_words)
        yield said_by(f"neighbour's {step}", trial)
