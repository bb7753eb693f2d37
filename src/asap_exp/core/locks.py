"""A directory belongs to one process at a time, by a lock that ends with its process."""

import errno
import os
import shutil
import socket
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from pydantic.dataclasses import dataclass

from asap_exp.core.errors import UserError
from asap_exp.core.files import unwritable, write_json
from asap_exp.core.manifest import command, now
from asap_exp.core.typed import STRICT, read, to_json

LOCK, HOLDER = ".lock", ".lock.json"

BRIEFLY = 10.0
"""Seconds for which a lock is waited for that others hold for an instant."""

UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without flock answer."""


@dataclass(config=STRICT, kw_only=True)
class Holder:
    host: str
    pid: int
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}: {self.command}"


@contextmanager
def held(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Holds `folder`, made if need be; UserError says which process holds it already.

    A process that ends, in whatever way, holds nothing any more. A folder in which nothing was
    written is removed again. `wait` is in seconds.
    """
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
        lock.release()


def acquired(file: Path, wait: float) -> BaseFileLock:
    """flock; on a file system without it a file with host and process, taken over if that died."""
    locks = (FileLock(file), SoftFileLock(file))
    for lock in locks:
        try:
            with warnings.catch_warnings(action="ignore"):
                lock.acquire(timeout=wait)
            return lock
        except Timeout as error:
            raise UserError(
                f"{file.parent} belongs to {holder_of(file.parent)}. Wait until that has ended, or "
                "stop it, and try again"
            ) from error
        except OSError as error:
            if lock is locks[-1] or error.errno not in UNSUPPORTED:
                raise
    raise AssertionError("the loop returns or raises")


def holder_of(folder: Path) -> str:
    try:
        return str(read(Holder, folder / HOLDER))
    except UserError:
        return "another process, which has not said yet which"


@contextmanager
def part_held(whole: Path, part: Path) -> Iterator[None]:
    """Holds `part`, a folder within `whole`, which no other process holds at that moment.

    Whoever holds `whole` can thus know by `require_free` that nobody has, or takes, a part of it.
    """
    with ExitStack() as stack:
        with held(whole, wait=BRIEFLY):
            stack.enter_context(held(part))
        yield


def require_free(parts: Iterable[Path]) -> None:
    """UserError where another process holds one of the folders."""
    for part in parts:
        with held(part):
            pass
