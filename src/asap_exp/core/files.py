"""Files that are whole or not there: written beside their place, then renamed into it."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from asap_exp.core.errors import UserError

UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
"""What a file system answers that does not know the call."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOCKED = {errno.EACCES, errno.EPERM, errno.EROFS}
ELSEWHERE = "choose another folder with paths.results=FOLDER, out=FOLDER or data.cache=FOLDER"
WRITERS_OWN = ("inline_container.cc", "PytorchStreamWriter", "iostream error", "I/O error")
"""Words of torch and safetensors about a write that failed; they hide the system's error."""
KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
STALE_SECONDS = 24 * 3600
"""Age of a partial file after which its writer is dead, where no lock can tell."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a temporary path in the same folder, syncs it, and renames it to `path`.

    Whatever stops it, a full disk or a killed process, an earlier file at `path` stays whole.
    UserError where the folder cannot be written. Removes what killed writers left in the folder.
    """
    outer = sys.exception()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with partial_file(path) as temporary:
            write_through(temporary, write)
            # The rights are cosmetic: not every file system has them.
            with contextlib.suppress(OSError):
                temporary.chmod(0o666 & ~current_umask())
            rename(temporary, path)
    except UserError:
        raise
    except Exception as error:
        if (cause := write_failure(error, outer)) is None:
            raise
        raise unwritable(path, cause) from error


def write_through(temporary: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` and syncs; the system's error where `write` hides it behind its own words."""
    try:
        write(temporary)
    except Exception as error:
        if not in_own_words(error):
            raise
        # A further block meets what the writer met.
        with temporary.open("ab") as file:
            file.write(bytes(2**20))
        sync(temporary)
        raise
    sync(temporary)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A new file beside `path`, locked while it is written, and gone afterwards.

    The lock ends with its process, so that `sweep` knows a dead writer's file.
    """
    while True:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=f".{HOST}.partial"
        )
        temporary = Path(name)
        lock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            break
        os.close(handle)  # swept between being made and being locked
    try:
        yield temporary
    except BaseException:
        # A failed writer may hold the file open for as long as its traceback is alive: an unlinked
        # file would keep its space, which the manifest needs.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(handle)


def sweep(folder: Path) -> None:
    """Removes the partial files in `folder` whose writers are dead."""
    for file in folder.glob(".*.partial"):
        if not file.is_file():  # opening a pipe would wait for ever
            continue
        with contextlib.suppress(OSError), file.open("rb") as opened:
            if abandoned(file, opened.fileno()):
                file.unlink()


def abandoned(file: Path, handle: int) -> bool:
    """Whether nobody writes `file`: its lock is free, or it is old where that says nothing."""
    free = lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if free is None or not file.name.endswith(f".{HOST}.partial"):
        return free is not False and time.time() - os.fstat(handle).st_mtime > STALE_SECONDS
    return free


def lock(handle: int, how: int) -> bool | None:
    """Whether the file is locked now; None where its file system has no locks."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sync(path: Path) -> None:
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def rename(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EPERM, errno.EXDEV}:
            raise
        raise UserError(
            f"{path} could not be written: no file can be renamed into its place "
            f"({error.strerror}), without which it might be left half written. Its file system "
            f"knows no renaming, or the file there is protected; {ELSEWHERE}"
        ) from error


def write_failure(error: BaseException, outer: BaseException | None) -> BaseException | None:
    """The system's error behind `error`, or the writer's own words for one; None for others.

    What was being handled before, `outer`, is no part of it.
    """
    seen: BaseException | None = error
    while seen is not None and seen is not outer:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error if in_own_words(error) else None


def in_own_words(error: BaseException) -> bool:
    return any(words in str(error) for words in WRITERS_OWN)


def unwritable(path: Path, error: BaseException) -> UserError:
    """The sentence for a file that could not be written, with the advice that fits."""
    code = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    advice = "Free or unlock the disk, or "
    if code in FULL:
        advice = "Free some space, or raise the quota or the limit on the size of files, or "
    elif code in LOCKED:
        advice = "Unlock the folder, or "
    elif code in (errno.EISDIR, errno.ENOTEMPTY):
        advice = "A folder lies in its place: move that away, or "
    return UserError(
        f"{path} could not be written ({reason}); what was there before is unharmed. "
        f"{advice}{ELSEWHERE}"
    )


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON; a number that is not finite is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """UserError, with the file's name, where the system does not let `path` be read.

    A pipe or a device too, which might never end, or never begin.
    """
    try:
        check_regular(path)
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not a file") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user; change its rights") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error})") from error


def check_regular(path: Path) -> None:
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = next((name for is_one, name in KINDS if is_one(mode)), "something else")
        raise UserError(f"{path} is {kind}, not a file; put a regular file in its place")


def check_readable(path: Path) -> None:
    """UserError where `path` is missing, a folder, or not to be read."""
    with reading(path), path.open("rb") as file:
        file.read(1)


def read_text(path: Path) -> str:
    """Without a byte order mark; UserError where the file is missing, unreadable or not UTF-8."""
    with reading(path):
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """UserError where the file is missing, cannot be read or is not JSON of finite numbers."""
    text = read_text(path)
    try:
        return json.loads(
            text, parse_constant=refused_number, parse_float=number, parse_int=whole_number
        )
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is damaged: it is not JSON ({reason})") from error


def refused_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no number of JSON")


def number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        refused_number(text)
    return value


def whole_number(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        refused_number(text)
    return value
