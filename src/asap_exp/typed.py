"""JSON as typed objects: checked whole when it is read, so that half a record is never used."""

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from asap_exp.errors import UserError
from asap_exp.files import read_json
from asap_exp.sealed import check_seal

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
"""Of pydantic's dataclasses: no conversions, no unknown keys, no NaN or infinity."""

SHOWN = 60
"""Characters of a wrong value that a message shows."""


def read(kind: type[T], file: Path) -> T:
    """What `file` holds, as a `kind`.

    UserError where it is missing, no JSON, of another shape, or not what its seal says.
    """
    return from_json(kind, read_json(file), file)


def from_json(kind: type[T], value: Any, file: Path) -> T:
    """`value`, read from `file`, as a `kind`; UserError names the file, the key and the fault."""
    check_seal(value, file)
    try:
        # As text: pydantic is strict with numbers and words there, and takes an object for a class.
        return adapter(kind).validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        where = f"{key}: " if key else ""
        got = repr(first["input"])
        shown = got if len(got) <= SHOWN else f"{got[:SHOWN]}..."
        raise UserError(
            f"{file} is damaged, or of another version: {where}{first['msg']} (it holds {shown})"
        ) from error


@cache
def adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def to_json(value: Any) -> Any:
    """A typed object as plain values that JSON can hold."""
    return adapter(type(value)).dump_python(value, mode="json")
