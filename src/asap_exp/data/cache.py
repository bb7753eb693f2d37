"""Files that later runs read again, each beside the hash of its bytes, so that damage is seen."""

import hashlib
from pathlib import Path

from asap_exp.core.errors import UserError
from asap_exp.core.files import write_bytes, write_text


def keep(file: Path, data: bytes) -> None:
    """Writes `data` and its hash; UserError where the cache cannot be written."""
    try:
        write_bytes(file, data)
        write_text(hash_file(file), f"{hashlib.sha256(data).hexdigest()}\n")
    except UserError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__ or error
        raise UserError(
            f"{file} could not be written into the cache ({reason}); choose another folder with "
            "data.cache=FOLDER or ASAP_EXP_CACHE=FOLDER"
        ) from error


def kept(file: Path) -> bytes | None:
    """What `keep` wrote; None where that is not there, or no longer what it was."""
    try:
        data = file.read_bytes()
        expected = hash_file(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return data if hashlib.sha256(data).hexdigest() == expected else None


def hash_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def file_sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
