"""Manifest of a result: configuration, code, versions, hardware, seed, data, time."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from asap_exp.core.command_line import command
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted, postponed
from asap_exp.core.plugins import MODULE
from asap_exp.core.run_log import log_into
from asap_exp.core.sealed import write_sealed
from asap_exp.core.typed import STRICT, read, to_json

PACKAGES = (
    "asap_exp",
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "hydra-core",
    "omegaconf",
    "datasets",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "safetensors",
    "triton",
)
"""Packages whose versions are recorded."""


FORMAT = 2
"""Version of the manifest's format."""


@dataclass(config=STRICT, kw_only=True)
class Code:
    """Version of the code: git commit, and whether code differs from it."""

    commit: str | None
    dirty: bool | None


@dataclass(config=STRICT, kw_only=True)
class Hardware:
    """Hardware and operating system of an attempt."""

    gpu: str | None
    cpu: str
    cpu_threads: int
    system: str


@dataclass(config=STRICT, kw_only=True)
class Plugin:
    """Attention, step, module or callback of another package, and where its class is from."""

    kind: Literal["attention", "calibration", "module", "callback"]
    name: str
    module: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]
    distribution: str | None
    version: str | None
    sha256: str | None
    """Hash of the module's source file."""

    @property
    def argument(self) -> str:
        return f"{self.kind}.{MODULE}={self.module}"

    @property
    def remedy(self) -> str:
        """What makes it known, in words."""
        if self.distribution is None:
            return f"add {self.argument} to the command, if you trust that module"
        return (
            f"it is of {self.distribution} {self.version}. If you trust that, install it, or add "
            f"{self.argument} to the command"
        )


@dataclass(config=STRICT, kw_only=True)
class Attempt:
    """Attempt at a run: when, with what, and how it ended (None if unknown)."""

    status: Literal["running", "finished", "failed", "interrupted"]
    started: str
    code: Code
    versions: dict[str, str | None]
    hardware: Hardware
    ended: str | None = None
    wall_seconds: float | None = None


@dataclass(config=STRICT, kw_only=True)
class Manifest(Attempt):
    """Manifest of any stage; `error` says why it failed or was interrupted."""

    stage: str
    command: str
    seed: int
    config: dict[str, Any]
    error: str | None = None
    plugins: list[Plugin] | None = None
    """What the work used of other packages."""
    format: Literal[2] | None = None
    """Version of the format; None in manifests that are older than `sha256`."""
    sha256: str | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @model_validator(mode="after")
    def _complete(self) -> "Manifest":
        if self.format is not None and self.sha256 is None:
            raise ValueError("its sha256, which shows that nothing has changed, is missing")
        missing = [name for name in self.outcome() if getattr(self, name) is None]
        if self.finished and missing:
            raise ValueError(f"status is finished, but {', '.join(missing)} is missing")
        return self

    @classmethod
    def outcome(cls) -> tuple[str, ...]:
        """Return the fields that a finished stage must have."""
        return ("ended", "wall_seconds")


@dataclass(config=STRICT, kw_only=True)
class Initial:
    """Run whose weights a training started from."""

    run: str
    teacher_sha256: str
    task: str
    attention: str
    recipe_hash: str


@dataclass(config=STRICT, kw_only=True)
class TrainManifest(Manifest):
    """Manifest of a training run."""

    recipe_hash: str
    data: dict[str, Any]
    initial: Initial | None = None
    parameters: int
    resumed_from: str | None = None
    earlier_attempts: list[Attempt]
    kept_epoch: int | None = None
    epochs: int | None = None
    teacher_sha256: str | None = None
    train_seconds: float | None = None
    validate_seconds: float | None = None
    compile_seconds: float | None = None
    """Part of train_seconds in which recorded steps were compiled; None if none was recorded."""
    best_val_accuracy: float | None = None
    best_val_perplexity: float | None = None
    curves_sha256: str | None = None

    @classmethod
    def outcome(cls) -> tuple[str, ...]:
        return (*super().outcome(), "kept_epoch", "epochs", "teacher_sha256")


@dataclass(config=STRICT, kw_only=True)
class BenchmarkManifest(Manifest):
    """Manifest of a benchmark, with the stopped attempts whose rows it took over."""

    earlier_attempts: list[Attempt] = field(default_factory=list)
    """Oldest first; older manifests lack it."""

    def took_over(self, measured: str | None) -> bool:
        """Return True for a row of an earlier attempt; `measured` is when the row was ready."""
        return measured is not None and measured < self.started


@dataclass(config=STRICT, kw_only=True)
class LaterManifest(Manifest):
    """Manifest of a stage that works on a teacher: distill and evaluate."""

    teacher: str
    data: dict[str, Any] | None = None
    earlier_attempts: list[Attempt] = field(default_factory=list)
    """Stopped attempts whose parts an evaluation took over, oldest first."""


@contextmanager
def manifest(path: Path, **facts: Any) -> Iterator[dict[str, Any]]:
    """Write a manifest when work starts, and again, with its outcome, when it ends or fails."""
    record = begun(**facts)
    with postponed() as stop:  # a signal now would leave the manifest at "running"
        write_sealed(path, record)
    log_into(path.parent)
    try:
        stop.obey()
        yield record
    except BaseException as error:
        stopped = isinstance(error, Interrupted)
        record |= outcome(record, "interrupted" if stopped else "failed")
        record["error"] = str(error) if stopped else f"{type(error).__name__}: {error}"[:2000]
        if not stopped and not path.is_file() and isinstance(error, UserError | OSError):
            raise gone(path) from error
        with suppress(UserError):  # report the first error
            write_over(path, record)
        raise
    record |= outcome(record, "finished")
    with postponed() as stop:
        write_over(path, record)
    stop.obey()


def begun(**facts: Any) -> dict[str, Any]:
    """Return the manifest of work that starts now, in this process."""
    return {
        "format": FORMAT,
        "status": "running",
        "started": now(),
        "command": command(),
        "code": code_version(),
        "versions": versions(),
        "hardware": hardware(),
        **facts,
    }


def attempts_at(
    path: Path, kind: type[TrainManifest | BenchmarkManifest | LaterManifest]
) -> list[dict[str, Any]]:
    """Return the attempts in a manifest, oldest first; none if it is missing or damaged."""
    if not path.is_file():
        return []
    try:
        last = read(kind, path)
    except UserError:
        return []
    facts = {field.name: getattr(last, field.name) for field in fields(Attempt)}
    return [to_json(attempt) for attempt in (*last.earlier_attempts, Attempt(**facts))]


def outcome(record: dict[str, Any], status: str) -> dict[str, Any]:
    """Return status, end and duration of the work that `record` says began."""
    ended = datetime.now(UTC)
    seconds = (ended - datetime.fromisoformat(record["started"])).total_seconds()
    return {"status": status, "ended": stamp(ended), "wall_seconds": round(max(seconds, 0.0), 2)}


def write_over(path: Path, record: dict[str, Any]) -> None:
    """Write the manifest again; raise UserError if the first version has disappeared."""
    if not path.is_file():
        raise gone(path)
    write_sealed(path, record)


def gone(path: Path) -> UserError:
    """Return the UserError for the lost manifest of a running stage."""
    lost = path if path.parent.is_dir() else path.parent
    return UserError(
        f"{lost} is no longer there: it was deleted or moved while the stage ran, and its results "
        "may be lost as well; start the same command again"
    )


def now() -> str:
    """Return the current time in UTC, in ISO format."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """Format a time with milliseconds."""
    return moment.isoformat(timespec="milliseconds")


def code_version() -> dict[str, Any]:
    """Return the git commit and whether code differs from it.

    Any tracked file counts, except results, and any new one in the package or `conf` that git does
    not ignore; other new files, such as one's notes, change nothing. Without a git checkout,
    ASAP_EXP_COMMIT is used for the commit; otherwise both are None.
    """
    folder = Path(__file__).resolve().parent
    package = folder.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        if Path(top) not in folder.parents or git("ls-files", "__init__.py") == "":
            raise FileNotFoundError("not a checkout of this project")
        tracked = ["--untracked-files=no", "--", top, f":(exclude){top}/results"]
        changes = git("status", "--porcelain", *tracked)
        added = git("ls-files", "--others", "--exclude-standard", "--", str(package), f"{top}/conf")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes or added)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get("ASAP_EXP_COMMIT"), "dirty": None}


def versions() -> dict[str, str | None]:
    """Return the versions of Python, the recorded packages and CUDA; None for what is missing."""
    import torch

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found | {"cuda": torch.version.cuda if torch.cuda.is_available() else None}


def hardware() -> dict[str, Any]:
    """Return the GPU, CPU, threads and system."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpu": processor_name(),
        "cpu_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    """Return the CPU's model name, or "unknown"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
