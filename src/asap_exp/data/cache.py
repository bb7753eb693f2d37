"""Cache files, each stored with the SHA-256 of its bytes so that damage is detected.

A cache may be deleted at any time: what is missing is made again. A file appears under its name
only when it is complete, and its hash after it.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from asap_exp.core.console import say
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_atomically, write_bytes, write_text


def write_cached(file: Path, data: bytes) -> None:
    """Write `data` and its hash.

    Raises UserError if the cache cannot be written.
    """
    with naming_the_cache(file):
        write_bytes(file, data)
        write_text(hash_file(file), f"{hashlib.sha256(data).hexdigest()}\n")


@contextlib.contextmanager
def naming_the_cache(file: Path) -> Iterator[None]:
    """Say in an error that `file` belongs to the cache, and how to choose another."""
    try:
        yield
    except UserError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__ or error
        raise UserError(
            f"{file} could not be written to the cache ({reason}); choose another folder with "
            "data.cache=FOLDER or ASAP_EXP_CACHE=FOLDER"
        ) from error


def read_cached(file: Path) -> bytes | None:
    """Return what `write_cached` wrote, or None if it is missing or no longer matches its hash."""
    try:
        data = file.read_bytes()
        expected = hash_file(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return data if hashlib.sha256(data).hexdigest() == expected else None


def cached_array(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in `file`, a `.npy`, or else the one that `make` returns, which is kept.

    Processes that want the same array wait for the first of them. The array is mapped from the
    file, so that it occupies memory only where it is used.
    """
    if (found := read_array(file)) is not None:
        return found
    with alone(file):
        if (found := read_array(file)) is not None:
            return found
        array = make()
        with naming_the_cache(file):
            write_atomically(file, lambda temporary: save_array(temporary, array))
            write_text(hash_file(file), f"{file_sha256(file)}\n")
    return array


def save_array(file: Path, array: np.ndarray) -> None:
    """Write an array to a file of any name."""
    with file.open("wb") as opened:
        np.save(opened, array, allow_pickle=False)


def read_array(file: Path) -> np.ndarray | None:
    """Return the array of `cached_array`, or None if it is missing or does not match its hash."""
    try:
        if file_sha256(file) != hash_file(file).read_text(encoding="utf-8").strip():
            return None
        # Changes stay in memory.
        return np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process makes `file`; the lock of a process ends with it."""
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            say("Another process makes the same file of the cache; waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError):  # no such folder, or no locks: both make the file
        yield
        return
    try:
        yield
    finally:
        lock.release()


def hash_file(file: Path) -> Path:
    """Return the path of the file that holds the hash of `file`."""
    return file.with_name(f"{file.name}.sha256")


def file_sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
