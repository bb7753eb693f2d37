"""Disks that are full or break: size limits, small file systems, results taken away."""

import ctypes
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.reliability.bench import COMMANDS, TIMEOUT, Base, Bench, Case, Trial, remove
from tests.reliability.child import Ended
from tests.reliability.facts import difference, facts
from tests.reliability.verdicts import broken

STARTS = {"train": None, "distill": "train", "evaluate": "map", "report": "evaluated"}
ENDS = {"train": "train", "distill": "map", "evaluate": "evaluated", "report": "reported"}
BASES = {*ENDS.values()}

LIMITS = (0, 1, 2, 8, 20, 40, 60, 90, 200)
"""KiB that a file may have."""
ROOM = (0, 4, 16, 40, 80, 160, 320, 480, 700)
"""KiB that are free on the small file system when a stage begins."""
CLONE_NEWNS, MS_REC, MS_PRIVATE, MS_REMOUNT, MNT_DETACH = 0x20000, 0x4000, 0x40000, 32, 2


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    limited = [
        Case("disk", f"limit-{stage}-{size}", check_limit, (stage, size))
        for stage in ENDS
        for size in LIMITS
    ]
    small = [
        Case("disk", f"full-{stage}-{size}", check_full, (stage, size))
        for stage in ENDS
        for size in ROOM
    ]
    taken = [
        Case("disk", f"{how}-{stage}-{n}", check_taken, (stage, how))
        for how in ("deleted", "renamed")
        for stage in ENDS
        for n in range(4)
    ]
    return limited + small + taken


def check_limit(bench: Bench, case: Case) -> list[Trial]:
    stage, size = case.detail
    begin(bench, stage)

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size << 10, size << 10))

    ended = bench.run(stage, *COMMANDS[stage], prepare=prepare)
    return [after_error(bench, stage, ended), rerun(bench, stage)]


def begin(bench: Bench, stage: str) -> None:
    start = STARTS[stage]
    if start is not None:
        bench.copy(start)


def after_error(bench: Bench, stage: str, ended: Ended) -> Trial:
    """A sentence, or finished and equal where there was room enough."""
    if failed := broken(ended):
        return failed
    if ended.status == 2:
        return Trial("sentence")
    differs = difference(facts(stage, bench.results), facts(stage, base(bench, stage)))
    return Trial("other result", differs) if differs else Trial("room enough")


def base(bench: Bench, stage: str) -> Path:
    return bench.bases[ENDS[stage]].results


def rerun(bench: Bench, stage: str) -> Trial:
    ended = bench.run(stage, *COMMANDS[stage])
    if failed := broken(ended):
        return Trial(f"rerun: {failed.outcome}", failed.failure)
    differs = difference(facts(stage, bench.results), facts(stage, base(bench, stage)))
    if ended.status or differs:
        return Trial("rerun: not equal", differs or ended.last_words)
    return Trial("rerun: finished, equal")


def check_full(bench: Bench, case: Case) -> list[Trial]:
    """On a file system of the worker's own, which nobody else sees and which ends with it."""
    stage, size = case.detail
    begin(bench, stage)
    bench.results.mkdir(exist_ok=True)
    held = sum(4096 * (1 + file.stat().st_size // 4096) for file in bench.results.rglob("*"))
    aside = bench.results.rename(bench.folder / "aside")
    bench.results.mkdir()
    if not mounted(bench.results, held + (size << 10)):
        return [Trial("skipped: no permission to mount")]
    try:
        shutil.copytree(aside, bench.results, dirs_exist_ok=True)
        remove(aside)
        ended = bench.run(stage, *COMMANDS[stage])
        trial = after_error(bench, stage, ended)
        mount(bench.results, 64 << 20, MS_REMOUNT)
        return [trial, rerun(bench, stage)]
    finally:
        ctypes.CDLL(None).umount2(bytes(bench.results), MNT_DETACH)


def mounted(folder: Path, size: int) -> bool:
    libc = ctypes.CDLL(None)
    own = libc.unshare(CLONE_NEWNS) == 0 and libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    return own == 0 and mount(folder, size, 0)


def mount(folder: Path, size: int, flags: int) -> bool:
    options = f"size={size}".encode()
    return ctypes.CDLL(None).mount(b"tmpfs", bytes(folder), b"tmpfs", flags, options) == 0


def check_taken(bench: Bench, case: Case) -> list[Trial]:
    """The results folder goes while a stage runs, and comes back as it was before."""
    stage, how = case.detail
    begin(bench, stage)
    bench.results.mkdir(exist_ok=True)
    take: Callable[[Path], object] = (
        remove_all if how == "deleted" else lambda path: os.rename(path, bench.folder / "elsewhere")
    )
    child = bench.start(stage, *COMMANDS[stage])
    time.sleep(bench.rng.uniform(0.02, bench.bases[ENDS[stage]].seconds))
    take(bench.results)
    ended = child.wait(TIMEOUT)
    undisturbed = facts(stage, base(bench, stage))
    places = (bench.results, bench.folder / "elsewhere")
    there = any(facts(stage, place) == undisturbed for place in places)
    words = "sentence" if ended.status == 2 else "finished" if there else "finished, results gone"
    remove(bench.folder / "elsewhere")
    remove(bench.results)
    begin(bench, stage)
    return [broken(ended) or Trial(words), rerun(bench, stage)]


def remove_all(path: Path) -> None:
    """Once more where a file was made meanwhile."""
    for _ in range(50):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
