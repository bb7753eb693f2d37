"""Locks on directories: one process at a time, until that process ends."""

import errno
import os
import shutil
import socket
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from pydantic.dataclasses import dataclass

from asap_exp.core.command_line import command
from asap_exp.core.errors import UserError
from asap_exp.core.files import unwritable, write_json
from asap_exp.core.manifest import now
from asap_exp.core.typed import STRICT, read, to_json

LOCK, HOLDER = ".lock", ".lock.json"

BRIEFLY = 10.0
"""Seconds to wait for a lock that other processes hold only for an instant."""

UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""Error codes of file systems without flock."""


@dataclass(config=STRICT, kw_only=True)
class Holder:
    """Process that holds a directory."""

    host: str
    pid: int
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}: {self.command}"


@contextmanager
def held(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold `folder`, created if missing; raise UserError that names the process already holding it.

    The lock ends with its process. A folder in which nothing was written is removed again, with
    those above it that were made for it. `wait` is in seconds.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquired(folder / LOCK, wait)
    except OSError as error:
        raise unwritable(folder / LOCK, error) from error
    try:
        holder = Holder(host=socket.gethostname(), pid=os.getpid(), since=now(), command=command())
        write_json(folder / HOLDER, to_json(holder))
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        if folder.is_dir() and {file.name for file in folder.iterdir()} <= {LOCK}:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another process uses it
                for parent in missing:
                    parent.rmdir()
        lock.release()


@contextmanager
def emptied_unless_begun(folder: Path) -> Iterator[None]:
    """Empty a held folder, if it was empty before, when the work fails before its manifest.

    A training that finds no tracker, for example, then leaves no trace.
    """
    new = {file.name for file in folder.iterdir()} <= {LOCK, HOLDER}
    try:
        yield
    except BaseException:
        if new and folder.is_dir() and not (folder / "manifest.json").exists():
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name not in (LOCK, HOLDER):
                    entry.unlink()
        raise


def acquired(file: Path, wait: float) -> BaseFileLock:
    """Acquire a flock, or a file with host and process on file systems without flock.

    Such a file is taken over if its process has died. Raises UserError if another process holds it.
    """
    locks = (FileLock(file), SoftFileLock(file))
    for lock in locks:
        try:
            with warnings.catch_warnings(action="ignore"):
                lock.acquire(timeout=wait)
            return lock
        except Timeout as error:
            raise UserError(
                f"{file.parent} is in use by {holder_of(file.parent)}. Wait until that has ended, "
                "or stop it, and try again"
            ) from error
        except OSError as error:
            if lock is locks[-1] or error.errno not in UNSUPPORTED:
                raise
    raise AssertionError("the loop returns or raises")


def holder_of(folder: Path) -> str:
    """Describe the process that holds `folder`."""
    try:
        return str(read(Holder, folder / HOLDER))
    except UserError:
        return "another process, which has not yet identified itself"


@contextmanager
def part_held(whole: Path, part: Path) -> Iterator[None]:
    """Hold `part`, a folder within `whole`, provided that no other process holds `whole`.

    So a holder of `whole` can check with `require_free` that nobody holds, or can take, a part of
    it.
    """
    with ExitStack() as stack:
        with held(whole, wait=BRIEFLY):
            stack.enter_context(held(part))
        yield


def in_use(folder: Path) -> bool:
    """Return True if another process holds an existing folder, or if that cannot be found out."""
    try:
        require_free([folder])
    except UserError:
        return True
    return False


def require_free(parts: Iterable[Path]) -> None:
    """Raise UserError if another process holds one of the folders."""
    for part in parts:
        with held(part):
            pass
