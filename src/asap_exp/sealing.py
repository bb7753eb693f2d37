"""A hash within a JSON object over everything else in it: what was edited by hand is refused."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asap_exp.errors import UserError

SEAL = "sha256"


def digest(content: Any) -> str:
    """SHA-256 of plain values: the same however their JSON is laid out."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its hash beside it."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return {**rest, SEAL: digest(rest)}


def check_seal(content: Mapping[str, Any], file: Path, again: str, *, required: bool) -> None:
    """UserError where the hash of `content`, read from `file`, is another one.

    Or where there is none, if it is `required`. `again` says how such a file is made.
    """
    if SEAL not in content and not required:
        return
    if sealed(content)[SEAL] != content.get(SEAL):
        raise UserError(
            f"{file} was changed after it was written: its {SEAL} is not that of the rest; take "
            f"an unchanged copy, or make it again with: {again}"
        )
