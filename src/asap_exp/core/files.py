"""Atomic files: written next to their final path, then renamed to it."""

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

from asap_exp.core.console import debug, shown
from asap_exp.core.errors import UserError
from asap_exp.core.locations import elsewhere

UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
"""Error codes of file systems that do not support a call."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOCKED = {errno.EACCES, errno.EPERM, errno.EROFS}
WRITERS_OWN = ("inline_container.cc", "PytorchStreamWriter", "iostream error", "I/O error")
"""Phrases of torch and safetensors for a failed write; they hide the system's error."""
KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""Hash of this machine's name, part of the names of partial files."""
STALE_SECONDS = 24 * 3600
"""Age after which the writer of a partial file counts as dead, if no lock can tell."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary path in the same folder, sync it, and rename it to `path`.

    Whatever interrupts it, a full disk or a killed process, an earlier file at `path` stays intact.
    Removes partial files that killed writers left in the folder. Raises UserError if the folder is
    not writable.
    """
    outer = sys.exception()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with partial_file(path) as temporary:
            write_through(temporary, write)
            # Permissions are optional here: not every file system has them.
            with contextlib.suppress(OSError):
                temporary.chmod(0o666 & ~current_umask())
            rename(temporary, path)
        debug(f"wrote {shown(path)}")
    except UserError:
        raise
    except Exception as error:
        if (cause := write_failure(error, outer)) is None:
            raise
        raise unwritable(path, cause) from error


def write_through(temporary: Path, write: Callable[[Path], None]) -> None:
    """Call `write` and sync; raise the system's error if `write` hides it in its own words."""
    try:
        write(temporary)
    except Exception as error:
        if not in_own_words(error):
            raise
        # Writing one more block provokes the same system error.
        with temporary.open("ab") as file:
            file.write(bytes(2**20))
        sync(temporary)
        raise
    sync(temporary)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Create a file next to `path` that is locked while it is written and removed afterwards.

    The lock ends with its process, so that `sweep` can recognise files of dead writers.
    """
    while True:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=f".{HOST}.partial"
        )
        temporary = Path(name)
        lock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            break
        os.close(handle)  # swept between creation and locking
    try:
        yield temporary
    except BaseException:
        # A failed writer may keep the file open as long as its traceback lives; unlinking alone
        # would then not free the space that the manifest needs.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the partial files in `folder` whose writers are dead."""
    for file in folder.glob(".*.partial"):
        if not file.is_file():  # opening a pipe would block
            continue
        with contextlib.suppress(OSError), file.open("rb") as opened:
            if abandoned(file, opened.fileno()):
                file.unlink()


def abandoned(file: Path, handle: int) -> bool:
    """Return True if nobody writes `file`: its lock is free, or it is old and locks cannot tell."""
    free = lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if free is None or not file.name.endswith(f".{HOST}.partial"):
        return free is not False and time.time() - os.fstat(handle).st_mtime > STALE_SECONDS
    return free


def lock(handle: int, how: int) -> bool | None:
    """Return whether the file is locked now, or None if its file system has no locks."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sync(path: Path) -> None:
    """Flush `path` to disk, if its file system supports that."""
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def rename(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; raise UserError if the file system cannot."""
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EPERM, errno.EXDEV}:
            raise
        raise UserError(
            f"{path} could not be written: a temporary file could not be renamed to it "
            f"({error.strerror}). Either its file system does not support renaming, or the file "
            f"there is protected; {elsewhere(path)}"
        ) from error


def write_failure(error: BaseException, outer: BaseException | None) -> BaseException | None:
    """Return the system's error behind `error`, the writer's own wording of one, or None.

    `outer`, an error that was being handled before, is not considered.
    """
    seen: BaseException | None = error
    while seen is not None and seen is not outer:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error if in_own_words(error) else None


def in_own_words(error: BaseException) -> bool:
    """Return True if torch or safetensors reports a failed write in its own words."""
    return any(words in str(error) for words in WRITERS_OWN)


def unwritable(path: Path, error: BaseException) -> UserError:
    """Return the UserError for a file that could not be written, with fitting advice."""
    code = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    advice = "Free or unlock the disk, or "
    if code in FULL:
        advice = "Free some space, or raise the quota or the limit on the size of files, or "
    elif code in LOCKED:
        advice = "Unlock the folder, or "
    elif code in (errno.EISDIR, errno.ENOTEMPTY):
        advice = "A folder is in its place; move it away, or "
    elif code in (errno.ENOTDIR, errno.EEXIST):
        advice = "A file is in place of a folder; move it away, or "
    return UserError(
        f"{path} could not be written ({reason}); an earlier file there is unharmed. "
        f"{advice}{elsewhere(path)}"
    )


def current_umask() -> int:
    """Return the umask of this process."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; raise ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn system errors on reading `path` into UserError with the file's name.

    Pipes and devices are refused as well, since they might never end or never begin.
    """
    try:
        check_regular(path)
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not a file") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user; change its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error})") from error


def check_regular(path: Path) -> None:
    """Raise UserError unless `path` is a regular file or a folder."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = next((name for is_one, name in KINDS if is_one(mode)), "something else")
        raise UserError(f"{path} is {kind}, not a file; put a regular file in its place")


def check_readable(path: Path) -> None:
    """Raise UserError if `path` is missing, a folder, or not readable."""
    with reading(path), path.open("rb") as file:
        file.read(1)


def read_text(path: Path) -> str:
    """Return the text without a byte order mark.

    Raises UserError if the file is missing, unreadable or not UTF-8.
    """
    with reading(path):
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """Return the JSON value of a file.

    Raises UserError if the file is missing, unreadable, or not JSON with finite numbers.
    """
    text = read_text(path)
    try:
        return json.loads(
            text, parse_constant=refused_number, parse_float=number, parse_int=whole_number
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is damaged: it is not JSON ({reason})") from error


def refused_number(text: str) -> NoReturn:
    """Raise ValueError for something that JSON does not allow as a number."""
    raise ValueError(f"{text[:40]} is not a JSON number")


def number(text: str) -> float:
    """Parse a finite float."""
    value = float(text)
    if not math.isfinite(value):
        refused_number(text)
    return value


def whole_number(text: str) -> int:
    """Parse an integer of at most 64 bits."""
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        refused_number(text)
    return value
