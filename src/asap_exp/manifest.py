"""What made a result: configuration, code, versions, hardware, seed, data, time."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from asap_exp.errors import UserError
from asap_exp.files import write_json

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

Manifest = dict[str, Any]


@contextmanager
def manifest(path: Path, **facts: Any) -> Iterator[Manifest]:
    """Writes a manifest when work starts, and again, with its outcome, when it ends or fails."""
    started = time.monotonic()
    record: Manifest = {
        "status": "running",
        "started": now(),
        "command": command(),
        "code": code_version(),
        "versions": versions(),
        "hardware": hardware(),
        **facts,
    }
    write_json(path, record)
    try:
        yield record
    except BaseException as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
        with contextlib.suppress(UserError):  # the first error is the one to tell
            finish(path, record, started)
        raise
    record["status"] = "finished"
    finish(path, record, started)


def finish(path: Path, record: Manifest, started: float) -> None:
    """Writes the outcome. UserError where what was written at the start went away meanwhile."""
    if not path.is_file():
        raise UserError(
            f"{path.parent} is no longer there: it was deleted or moved while the stage ran, and "
            "what the stage made may be lost with it; start the same command again"
        )
    record |= {"ended": now(), "wall_seconds": round(time.monotonic() - started, 2)}
    write_json(path, record)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def command() -> str:
    """What was typed: a module or a script, without the folder it lies in, and its arguments."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    return shlex.join(["python", *program.split(), *sys.argv[1:]])


def code_version() -> dict[str, Any]:
    """The git commit and whether tracked code differs from it.

    Where there is no git checkout, ASAP_EXP_COMMIT is believed; else both are null.
    """
    folder = Path(__file__).resolve().parent

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
        changes = git("status", "--porcelain", "--", top, f":(exclude){top}/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get("ASAP_EXP_COMMIT"), "dirty": None}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found | {"cuda": torch.version.cuda if torch.cuda.is_available() else None}


def hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpu": processor_name(),
        "cpu_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
