"""A folder for each case, stages run in it, and finished runs to copy into it."""

import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.child import Ended, Stage

DIGITS = ["task=digits", "logger=csv", "paths.results=results"]
SHORT = [
    *("model.depth=2", "model.dim=32", "model.heads=2", "recipe.warmup_epochs=0"),
    *("trainer.limit_train_batches=6", "trainer.limit_val_batches=2"),
    "callbacks.checkpoint_seconds=0",
]
TINY = [*DIGITS, *SHORT, "recipe.epochs=6"]
TWO = [*TINY, "trainer.devices=2", "trainer.accelerator=cpu"]
REGULARISED = [
    *("attention=softmax", "recipe.ema_decay=0.9", "model.dropout=0.1", "model.drop_path=0.1"),
    *("data.augment.cutmix=0.5", "recipe.keep=last"),
]
MASKED = [
    *("experiment=wikitext_excerpt", "paths.results=results", *SHORT, "recipe.epochs=4"),
    *("data.max_length=32", "data.batch_tokens=512", "data.vocab_size=512"),
]
CALIBRATION = ["calibration.slices=4", "calibration.samples=128", "calibration.holdout=64"]
MAP = [*DIGITS, *CALIBRATION]
END_TO_END = [
    *("calibration=end_to_end", *MAP, "calibration.candidates=8"),
    *("calibration.learned_slices.updates=20", "calibration.end_to_end.updates=20"),
]
EVAL = [
    *(*DIGITS, "max_test_rows=64", "fidelity_samples=32", "latency.batch_size=8"),
    *("latency.rounds=3", "truncations=[1]", "relaxed_truncations=[]"),
]
REPORT = ["paths.results=results"]
BENCHMARK = [
    *("accelerator=cpu", "cpu.n=[4,8]", "cpu.tokens=32", "cpu.heads=2", "cpu.head_dim=8"),
    *("cpu.rounds=3", "cpu.methods=[flash,sinkhorn_2,closure,asap_2]", "paths.results=results"),
]
COMMANDS = {
    "train": TINY,
    "distill": MAP,
    "evaluate": EVAL,
    "report": REPORT,
    "benchmark": BENCHMARK,
}

TIMEOUT = 120
"""Seconds for a stage that takes one or two: the machine may be busy with other work."""


@dataclass
class Case:
    """One trial of a part; its random numbers depend on the seed and on its name alone."""

    part: str
    name: str
    check: "Callable[[Bench, Case], list[Trial]]"
    detail: tuple = ()

    @property
    def id(self) -> str:
        return f"{self.part}/{self.name}"


@dataclass
class Trial:
    """What came of it, in a word or two; a failure also says what was seen."""

    outcome: str
    failure: str = ""
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """Finished results to start from, and how long its last stage takes."""

    results: Path
    seconds: float = 0.0


class Bench:
    """Where a case runs: deep in a folder of its own, so that `../..` stays in it."""

    def __init__(self, root: Path, bases: dict[str, Base], rng: random.Random) -> None:
        self.root, self.bases, self.rng = root, bases, rng
        self.folder = root / "a" / "b" / "c" / "d" / "e" / "f"
        self.temporary = root / "tmp"
        self.folder.mkdir(parents=True)
        self.temporary.mkdir()
        self.anywhere = False
        """Whether the case asked for files elsewhere."""

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def report(self) -> Path:
        return self.results / "report"

    def copy(self, base: str, name: str = "results") -> Path:
        """A fresh copy of a base's results, in place of what was there."""
        target = self.folder / name
        remove(target)
        shutil.copytree(self.bases[base].results, target, symlinks=True)
        return target

    def start(
        self, stage: str, *overrides: str, prepare: Callable[[], None] = lambda: None
    ) -> Stage:
        environment = {
            "HOME": str(self.folder / "home"),
            "ASAP_EXP_CACHE": str(self.folder / "cache"),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": as_imported(),
            "WANDB_MODE": "offline",
        }
        return Stage(self.folder, stage, overrides, environment, prepare)

    def run(
        self,
        stage: str,
        *overrides: str,
        timeout: float = TIMEOUT,
        prepare: Callable[[], None] = lambda: None,
    ) -> Ended:
        return self.start(stage, *overrides, prepare=prepare).wait(timeout)

    def strays(self) -> list[Path]:
        """Files outside the results folder and the caches of this bench."""
        if self.anywhere:
            return []
        inside = [self.folder / name for name in ("results", "home", "cache")]
        inside.append(self.temporary)
        return [
            path
            for path in self.root.rglob("*")
            if not path.is_dir() and not any(folder in path.parents for folder in inside)
        ]


def as_imported() -> str:
    """Search path with which a new interpreter imports the same package as this one."""
    source = str(Path(sys.modules["asap_exp"].__path__[0]).parent)
    return os.pathsep.join([source, *sys.path])


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def only(folder: Path, pattern: str) -> Path:
    """The one path that matches, those moved aside left out."""
    (found,) = (p for p in folder.glob(pattern) if "~" not in str(p.relative_to(folder)))
    return found


def run_of(results: Path, leaf: str = "*-s*") -> Path:
    return only(results, f"runs/*/*/{leaf}")


RECIPES: dict[str, tuple[str | None, str, list[str]]] = {
    "train": (None, "train", TINY),
    "train-two": (None, "train", TWO),
    "train-last": (None, "train", [*TINY, "recipe.keep=last"]),
    "train-softmax": (None, "train", [*TINY, *REGULARISED]),
    "train-masked": (None, "train", MASKED),
    "map": ("train", "distill", MAP),
    "two-maps": ("map", "distill", [*MAP, "calibration.query_features=true"]),
    "all-maps": ("two-maps", "evaluate", [*EVAL, "maps=all"]),
    "end-to-end": ("train", "distill", END_TO_END),
    "evaluated": ("map", "evaluate", EVAL),
    "reported": ("evaluated", "report", REPORT),
    "other-train": (None, "train", [*TINY, "seed=1"]),
    "other-map": ("other-train", "distill", MAP),
    "other": ("other-map", "evaluate", EVAL),
}
"""Undisturbed results: from which others, by which stage and overrides. The other run is newest."""


def make_bases(root: Path, names: set[str]) -> dict[str, Base]:
    """Each base of `names`, and those it comes from."""
    made: dict[str, Base] = {}

    def make(name: str) -> None:
        before, stage, overrides = RECIPES[name]
        if before is not None and before not in made:
            make(before)
        bench = Bench(root / name, made, random.Random(name))
        if before is not None:
            bench.copy(before)
        ended = bench.run(stage, *overrides)
        if ended.status:
            raise SystemExit(f"{stage} {' '.join(overrides)} undisturbed: {ended.text}")
        made[name] = Base(bench.results, ended.seconds)

    for name in RECIPES:
        if name in names and name not in made:
            make(name)
    return made
