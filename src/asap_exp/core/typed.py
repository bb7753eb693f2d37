"""JSON as typed objects: checked whole when it is read, so that half a record is never used."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from asap_exp.core.errors import UserError, check_name
from asap_exp.core.escaping import one_line
from asap_exp.core.files import read_json
from asap_exp.core.sealed import check_seal

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
"""Of pydantic's dataclasses: no conversions, no unknown keys, no NaN or infinity."""

VIEW: ConfigDict = {**STRICT, "extra": "ignore"}
"""The same of a part of something larger: what it does not name is left alone."""

SHOWN = 60
"""Characters of a wrong value that a message shows."""


class Newer(UserError):
    """A file of a version that is yet to come: whole, but for another program."""


def path_name(value: str) -> str:
    """`value`, which may be a part of a path; UserError for what leads elsewhere."""
    check_name("a name", value)
    return value


def run_name(value: str) -> str:
    """`value`, TASK/MODEL-ATTENTION/HASH-sSEED; UserError where a part is no name."""
    for part in value.split("/"):
        check_name("a part of a run's name", part)
    return value


Name = Annotated[str, AfterValidator(path_name)]
RunName = Annotated[str, AfterValidator(run_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
LARGEST = 1e60
"""Above what single precision and sums of it can hold; squares of it can still be averaged."""
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Measure = Annotated[float, Field(ge=0, le=LARGEST)]
"""An error, a distance, a time."""
Divergence = Annotated[float, Field(ge=-1e-5, le=LARGEST)]
"""A KL: rounding may take one of equal distributions a little below 0."""


def read(kind: type[T], file: Path) -> T:
    """What `file` holds, as a `kind`.

    UserError where it is missing, no JSON, of another shape, or not what its seal says.
    """
    return from_json(kind, read_json(file), file)


def from_json(kind: type[T], value: Any, file: Path, again: str = "") -> T:
    """`value`, read from `file`, as a `kind`; UserError names the file, the key and the fault.

    `again` is the command that makes such a file.
    """
    try:
        found = checked(kind, value)
    except ValueError as error:
        raise UserError(f"{file} is damaged, or of another version: {error}") from error
    check_seal(value, file, again)
    return found


def check_format(value: Any, known: int, file: Path, what: str) -> None:
    """UserError where `value`, read from `file`, is no object, or newer than `known`."""
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no {what}: it is {shortened(json.dumps(value))}")
    version = value.get("format")
    if isinstance(version, int) and version > known:
        raise Newer(
            f"{file} is of a newer version of asap_exp (format {shortened(str(version))}; this one "
            f"reads {known}); update asap_exp"
        )


def made(kind: type[T], value: Any, file: Path) -> T:
    """`value`, about to be written to `file`, as a `kind`; UserError where none could read it."""
    try:
        return checked(kind, value)
    except ValueError as error:
        raise UserError(
            f"{file} is not written, since it could not be read again: {error}. Change the setting "
            "or the samples that this number comes from"
        ) from error


def checked(kind: type[T], value: Any, key: str = "") -> T:
    """`value`, plain values as JSON has them, as a `kind`.

    ValueError names the key (below `key`) and what is wrong, in one line.
    """
    try:
        # As text: pydantic is strict with numbers and words there, and takes an object for a class.
        return adapter(kind).validate_json(json.dumps(value))  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError(described(error, key)) from error


def described(error: ValidationError, key: str = "") -> str:
    """The first of its mistakes: where, what is wrong, and what is there."""
    first = error.errors(include_url=False)[0]
    words = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    where = ".".join([key] * bool(key) + [str(part) for part in first["loc"]])
    place = f"{shortened(where)}: " if where else ""
    told = first["type"] in ("missing", "value_error") or isinstance(first["input"], dict)
    return f"{place}{words}" + ("" if told else f" (it holds {shortened(repr(first['input']))})")


def shortened(text: str) -> str:
    """The beginning of `text`, in one line."""
    return one_line(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


@cache
def adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def to_json(value: Any, *, exclude_none: bool = False) -> Any:
    """Typed objects, also within lists and dicts, as plain values that JSON can hold."""
    return to_jsonable_python(value, exclude_none=exclude_none)


def finite(x: float) -> float | None:
    """JSON has no NaN: a number that is not defined is null."""
    return x if math.isfinite(x) else None
