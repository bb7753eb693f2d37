"""Random kills, one to three in a row, and then the same command undisturbed."""

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from tests.reliability.bench import (
    END_TO_END,
    EVAL,
    MAP,
    MASKED,
    REGULARISED,
    REPORT,
    TINY,
    Base,
    Bench,
    Case,
    Trial,
    as_imported,
    run_of,
)
from tests.reliability.child import Ended
from tests.reliability.facts import difference, facts, load, tensors
from tests.reliability.verdicts import TRACEBACK

KINDS: dict[str, tuple[str, list[str], str | None, str, int]] = {
    "train-best": ("train", TINY, None, "train", 28),
    "train-last": ("train", [*TINY, "recipe.keep=last"], None, "train-last", 14),
    "train-softmax": ("train", [*TINY, *REGULARISED], None, "train-softmax", 14),
    "train-masked": ("train", MASKED, None, "train-masked", 14),
    "ridge": ("distill", MAP, "train", "map", 16),
    "end-to-end": ("distill", END_TO_END, "train", "end-to-end", 12),
    "evaluate": ("evaluate", EVAL, "map", "evaluated", 14),
    "report": ("report", REPORT, "evaluated", "reported", 14),
}
"""Stage, overrides, where it starts, what it makes undisturbed, how many cases."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COMMAND_LINES = 4
BASES = {base for kind in KINDS.values() for base in (kind[2], kind[3]) if base} | {"train"}


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    forked = [
        Case("kills", f"{kind}-{number}", check, (kind,))
        for kind, (*_, count) in KINDS.items()
        for number in range(count)
    ]
    typed = [Case("kills", f"typed-{n}", check_typed, (n,)) for n in range(COMMAND_LINES)]
    return forked + typed


def check(bench: Bench, case: Case) -> list[Trial]:
    stage, overrides, start, end, _ = KINDS[case.detail[0]]
    base = bench.bases[end]
    if start is not None:
        bench.copy(start)
    trials = []
    for _ in range(bench.rng.randint(1, 3)):
        number = bench.rng.choice(SIGNALS)
        before = manifests(bench.results)
        child = bench.start(stage, *overrides)
        delay = bench.rng.uniform(0.02, base.seconds)
        time.sleep(max(0.0, child.started + delay - time.monotonic()))
        child.send(number)
        ended = child.wait(60)
        equal = not difference(facts(stage, bench.results), facts(stage, base.results))
        trials.append(killed(ended, number, equal, begun(before, manifests(bench.results))))
        trials += unreadable(bench.results)
    return [*trials, rerun(bench, stage, overrides, base.results)]


def manifests(results: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in results.glob("runs/**/manifest.json")}


def begun(before: dict[Path, bytes], after: dict[Path, bytes]) -> list[str]:
    """What the manifests say that this attempt has written."""
    changed = [text for file, text in after.items() if before.get(file) != text]
    found = [re.search(rb'"status": "(\w+)"', text) for text in changed]
    return [match[1].decode() if match else "without a status" for match in found]


def killed(ended: Ended, number: signal.Signals, equal: bool, said: list[str]) -> Trial:
    """A stage that was stopped says so with 128 + signal, unless it had finished."""
    counts = {f"kills by {number.name}": 1, **{f"manifest {word}": 1 for word in said}}
    if ended.timed_out:
        return Trial("kill: no end", f"{number.name}: still there after 60 s", counts)
    if TRACEBACK in ended.text:
        return Trial("kill: traceback", f"{number.name}: {ended.last_words}", counts)
    if ended.status == 0 and equal:
        return Trial("kill: came too late", counts=counts)
    if ended.status != 128 + number:
        return Trial("kill: wrong status", f"{number.name}: {ended.last_words}", counts)
    if number != signal.SIGKILL and not set(said) <= {"interrupted", "finished"}:
        return Trial("kill: wrong manifest", f"{number.name}: manifest {said}", counts)
    return Trial("kill: stopped", counts=counts)


def unreadable(results: Path) -> list[Trial]:
    """Files that a kill has left half-written."""
    trials = []
    for file in results.rglob("*"):
        try:
            if file.suffix == ".json":
                load(file)
            elif file.suffix == ".safetensors":
                tensors(file)
            elif file.suffix == ".ckpt" and zipfile.ZipFile(file).testzip():
                raise ValueError("checksum")
        except (ValueError, zipfile.BadZipFile) as error:
            trials.append(Trial("unreadable file", f"{file.name}: {error}"))
    return trials


def rerun(bench: Bench, stage: str, overrides: list[str], base: Path) -> Trial:
    """The same command to its end: finished, equal to an undisturbed one, nothing left over."""
    ended = bench.run(stage, *overrides)
    resumed = {"reruns": 1, "resumed": int("Continuing from" in ended.out)}
    if ended.status or TRACEBACK in ended.text:
        return Trial("rerun: not finished", ended.last_words, resumed)
    if differs := difference(facts(stage, bench.results), facts(stage, base)):
        return Trial("rerun: not equal", differs, resumed)
    if partial := [file.name for file in bench.results.rglob("*.partial")]:
        return Trial("rerun: equal, a .partial left", " ".join(partial), resumed)
    if stage == "train" and (differs := difference(curves(bench.results), curves(base))):
        return Trial("rerun: equal, log incomplete", f"curves: {differs}", resumed)
    return Trial("rerun: finished, equal", counts=resumed)


def curves(results: Path) -> dict[int, dict[str, float]]:
    from asap_exp.core.runs import Run
    from asap_exp.core.training_log import own_curves

    return {int(row["epoch"]): row for row in own_curves(Run(run_of(results)))}


def check_typed(bench: Bench, case: Case) -> list[Trial]:
    """The real command line: SIGTERM or SIGKILL once there is a checkpoint, then the rest."""
    number = (signal.SIGTERM, signal.SIGKILL)[case.detail[0] % 2]
    command = [sys.executable, "-m", "asap_exp.train", *TINY]
    environment = {
        **os.environ,
        "HOME": str(bench.folder / "home"),
        "PYTHONPATH": as_imported(),
    }
    with (bench.temporary / "typed.err").open("w") as log:
        child = subprocess.Popen(
            command, cwd=bench.folder, env=environment, stderr=log, stdout=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 300
            while not list(bench.results.glob("runs/*/*/*/checkpoints/last.ckpt")):
                if child.poll() is not None or time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            child.send_signal(number)
            code = child.wait(60)
        finally:
            child.kill()
    status = code if code >= 0 else 128 - code
    ended = Ended(status, "", (bench.temporary / "typed.err").read_text(), 0.0, child.pid)
    base = bench.bases["train"].results
    equal = not difference(facts("train", bench.results), facts("train", base))
    said = begun({}, manifests(bench.results))
    return [
        killed(ended, number, equal, said),
        *unreadable(bench.results),
        rerun(bench, "train", TINY, base),
    ]
