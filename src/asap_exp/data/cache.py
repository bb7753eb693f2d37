"""Cache files, each stored with the SHA-256 of its bytes so that damage is detected."""

import hashlib
from pathlib import Path

from asap_exp.core.errors import UserError
from asap_exp.core.files import write_bytes, write_text


def write_cached(file: Path, data: bytes) -> None:
    """Write `data` and its hash.

    Raises UserError if the cache cannot be written.
    """
    try:
        write_bytes(file, data)
        write_text(hash_file(file), f"{hashlib.sha256(data).hexdigest()}\n")
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


def hash_file(file: Path) -> Path:
    """Return the path of the file that holds the hash of `file`."""
    return file.with_name(f"{file.name}.sha256")


def file_sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
