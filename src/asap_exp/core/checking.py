"""What `check=true` looks at in every stage: the folder it would write to, locks, memory, time.

Nothing is left behind. What a stage alone can check lies in its own `check.py`.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asap_exp.core.config import LoggerConfig
from asap_exp.core.console import duration, say
from asap_exp.core.errors import UserError
from asap_exp.core.files import UNSUPPORTED, unwritable
from asap_exp.core.locations import elsewhere, nearest
from asap_exp.core.locks import LOCK, require_free
from asap_exp.core.memory import gib
from asap_exp.core.score import Score
from asap_exp.core.tracking import reachable

SMALL_FILES = 16 * 2**20
"""Bytes for logs, tables, figures and wandb's files."""


def check_place(folder: Path, size: int, logger: LoggerConfig | None = None) -> dict[str, str]:
    """Check that a stage can write `size` bytes into `folder`, which may be missing, and track it.

    Returns what was found, in words. Raises UserError if another process holds the folder, if it
    cannot be written to, or if the tracker is out of reach.
    """
    if (folder / LOCK).is_file():
        require_free([folder])
    found = {"disk": check_writable(folder, size + SMALL_FILES)}
    if logger is not None:
        found["wandb"] = reachable(logger)
    return found


def check_writable(folder: Path, size: int) -> str:
    """Return how much space there is; UserError unless `size` bytes can be written to `folder`.

    They are reserved in a file without a name, so that quotas and limits count too.
    """
    there = nearest(folder)
    try:
        free = shutil.disk_usage(there).free
        if free < size:
            raise UserError(
                f"{folder} needs about {gib(size)}, and {gib(free)} are free there; free some "
                f"space, or {elsewhere(folder)}"
            )
        with tempfile.TemporaryFile(dir=there) as file:
            reserve(file.fileno(), size)
    except OSError as error:
        raise unwritable(folder, error) from error
    return f"about {gib(size)} of {gib(free)} free"


def reserve(handle: int, size: int) -> None:
    """Allocate the bytes of an open file, where its file system can."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def check_memory(needed: int, device: Any, advice: str) -> str:
    """Return in words what a stage takes; UserError if the torch.device has less memory left."""
    from asap_exp.core.devices import memory_left  # imports PyTorch

    left = memory_left(device)
    if needed > left:
        raise UserError(
            f"this takes about {gib(needed)} more memory, and {gib(left)} "
            f"{'of the GPU ' if device.type == 'cuda' else ''}are available; {advice}"
        )
    return f"about {gib(needed)} of {gib(left)} available"


def conclude(found: Mapping[str, str], seconds: float, work: str) -> Score:
    """Print what was found and what would run; return the estimated time as the job's score."""
    width = max(map(len, found))
    for name, text in found.items():
        say(f"  {name:<{width}}  {text}")
    about = f"about {duration(seconds)}"
    say(f"Checked, nothing was written. Would run: {work}; {about} (an estimate from one step)")
    return Score(name="estimated time", value=seconds, text=about, lower_is_better=True)


def nothing_to_do() -> Score:
    """Say that the command would end at once; return that as the job's score."""
    say("Checked, nothing was written. Would run: nothing, it is finished")
    return Score(name="estimated time", value=0.0, text="finished", lower_is_better=True)
