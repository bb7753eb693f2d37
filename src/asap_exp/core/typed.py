"""JSON as typed objects, validated completely on reading, so that partial records are not used."""

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
"""Options of pydantic's dataclasses: no conversions, no unknown keys, no NaN or infinity."""

VIEW: ConfigDict = {**STRICT, "extra": "ignore"}
"""Options of a view on part of a larger object: unknown keys are ignored."""

SHOWN = 60
"""Characters of a wrong value that a message shows."""


class Newer(UserError):
    """Raised for a file of a newer version: valid, but for another program."""


def path_name(value: str) -> str:
    """Return `value`, a name that can be part of a path, or raise UserError."""
    check_name("a name", value)
    return value


def run_name(value: str) -> str:
    """Return `value`, TASK/MODEL-ATTENTION/HASH-sSEED, or raise UserError."""
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
"""Upper bound that exceeds single precision and sums of it; its squares can still be averaged."""
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Measure = Annotated[float, Field(ge=0, le=LARGEST)]
"""Error, distance or time."""
Divergence = Annotated[float, Field(ge=-1e-5, le=LARGEST)]
"""KL divergence; for equal distributions rounding may put it slightly below 0."""


def read(kind: type[T], file: Path) -> T:
    """Return the contents of `file` as a `kind`.

    Raises UserError if it is missing, not JSON, of another shape, or does not match its seal.
    """
    return from_json(kind, read_json(file), file)


def from_json(kind: type[T], value: Any, file: Path, again: str = "") -> T:
    """Return `value`, read from `file`, as a `kind`; UserError names file, key and fault.

    `again` is the command that makes such a file.
    """
    try:
        found = checked(kind, value)
    except ValueError as error:
        raise UserError(f"{file} is damaged, or of another version: {error}") from error
    check_seal(value, file, again)
    return found


def check_format(value: Any, known: int, file: Path, what: str) -> None:
    """Raise UserError if `value`, read from `file`, is not an object or is newer than `known`."""
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no {what}: it is {shortened(json.dumps(value))}")
    version = value.get("format")
    if isinstance(version, int) and version > known:
        raise Newer(
            f"{file} is of a newer version of asap_exp (format {shortened(str(version))}; this one "
            f"reads {known}); update asap_exp"
        )


def made(kind: type[T], value: Any, file: Path) -> T:
    """Return `value`, about to be written to `file`, as a `kind`; UserError if it is invalid."""
    try:
        return checked(kind, value)
    except ValueError as error:
        raise UserError(
            f"{file} is not written, since it could not be read again: {error}. Change the setting "
            "or the samples that this number comes from"
        ) from error


def checked(kind: type[T], value: Any, key: str = "") -> T:
    """Return `value`, plain values as in JSON, as a `kind`.

    Raises ValueError with the key (below `key`) and the fault, in one line.
    """
    try:
        # As JSON text, pydantic is strict about numbers and strings, and reads objects as classes.
        return adapter(kind).validate_json(json.dumps(value))  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError(described(error, key)) from error


def described(error: ValidationError, key: str = "") -> str:
    """Describe the first error: where, what is wrong, and the value found."""
    first = error.errors(include_url=False)[0]
    words = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    where = ".".join([key] * bool(key) + [str(part) for part in first["loc"]])
    place = f"{shortened(where)}: " if where else ""
    told = first["type"] in ("missing", "value_error") or isinstance(first["input"], dict)
    return f"{place}{words}" + ("" if told else f" (it holds {shortened(repr(first['input']))})")


def shortened(text: str) -> str:
    """Return the beginning of `text`, in one line."""
    return one_line(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


@cache
def adapter(kind: type[T]) -> TypeAdapter[T]:
    """Return the cached pydantic adapter of `kind`."""
    return TypeAdapter(kind)


def to_json(value: Any, *, exclude_none: bool = False) -> Any:
    """Convert typed objects, also within lists and dicts, to plain JSON values."""
    return to_jsonable_python(value, exclude_none=exclude_none)


def finite(x: float) -> float | None:
    """Return None for an undefined number, since JSON has no NaN."""
    return x if math.isfinite(x) else None
