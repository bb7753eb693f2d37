"""JSON files that carry a hash of themselves, so that a changed value is not taken for a result."""

import hashlib
import json
from pathlib import Path
from typing import Any

from asap_exp.core.errors import UserError
from asap_exp.core.files import write_json

SEAL = "sha256"


def digest(value: dict[str, Any]) -> str:
    """SHA-256 of everything in `value` but its seal, whatever the order of the keys."""
    rest = {key: item for key, item in value.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    return value | {SEAL: digest(value)}


def write_sealed(file: Path, value: dict[str, Any]) -> None:
    write_json(file, sealed(value))


def check_seal(value: Any, file: Path, again: str = "") -> None:
    """UserError where `value`, read from `file`, was changed after it was sealed.

    What carries no seal is from before there were any. `again` is the command that makes the file.
    """
    if not isinstance(value, dict) or SEAL not in value:
        return
    if value[SEAL] != digest(value):
        raise UserError(
            f"{file} was changed after it was written: its contents do not have the SHA-256 that "
            "stands in it. Take an unchanged copy, or make it again"
            f"{f' with: {again}' if again else ''}"
        )
