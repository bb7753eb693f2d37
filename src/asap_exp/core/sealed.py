"""JSON files with a hash of their own contents, so that changed values are detected."""

import hashlib
import json
from pathlib import Path
from typing import Any

from asap_exp.core.errors import UserError
from asap_exp.core.files import write_json

SEAL = "sha256"
"""Key of the hash."""


def digest(value: dict[str, Any]) -> str:
    """Return the SHA-256 of `value` without its seal; the order of keys does not matter."""
    rest = {key: item for key, item in value.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` with its seal."""
    return value | {SEAL: digest(value)}


def write_sealed(file: Path, value: dict[str, Any]) -> None:
    """Write `value` with its seal as JSON."""
    write_json(file, sealed(value))


def check_seal(value: Any, file: Path, again: str = "") -> None:
    """Raise UserError if `value`, read from `file`, was changed after it was sealed.

    A value without a seal is from an earlier version and is accepted. `again` is the command that
    makes the file.
    """
    if not isinstance(value, dict) or SEAL not in value:
        return
    if value[SEAL] != digest(value):
        raise UserError(
            f"{file} was changed after it was written: its contents do not match the SHA-256 "
            "stored in it. Use an unchanged copy, or make it again"
            f"{f' with: {again}' if again else ''}"
        )
