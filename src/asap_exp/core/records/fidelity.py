"""`fidelity.json` next to a compiled map: a row per layer and head, with its hash in the map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.sealed import digest
from asap_exp.core.typed import STRICT, Count, Divergence, Measure, from_json, made

FIDELITY = "fidelity.json"
KL = "kl_"

AtMostOne = Annotated[float, Field(le=1 + 1e-6)]
AtLeastOne = Annotated[float, Field(ge=1 - 1e-6)]


@dataclass(config=STRICT, kw_only=True)
class FidelityRow:
    """Fidelity of one layer and head; None if a number is undefined or the step was not taken."""

    layer: str
    head: Count
    l1_row_distance: Measure | None
    column_error: Measure | None
    largest_column_error: Measure | None
    teacher_column_error: Measure | None
    r_squared: AtMostOne | None
    r_squared_held_out: AtMostOne | None
    condition_number: AtLeastOne | None
    kl: dict[str, Divergence | None] = Field(default_factory=dict)
    """KL of the plans after each step; kl_STEP in the file."""

    @model_validator(mode="before")
    @classmethod
    def _kl_by_step(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        of_steps = [key for key in given if key.startswith(KL)]
        rest = {key: value for key, value in given.items() if key not in of_steps}
        if "kl" in rest:
            raise ValueError("kl: unexpected key")
        return rest | {"kl": {key.removeprefix(KL): given[key] for key in of_steps}}

    @model_serializer(mode="wrap")
    def _by_column(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = written(self)
        return found | {f"{KL}{step}": kl for step, kl in found.pop("kl").items()}


def fidelity_digest(rows: Sequence[dict[str, Any]]) -> str:
    """Return the hash of the rows that the map's identity stores."""
    return digest({"rows": list(rows)})


def write_fidelity(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    file = folder / FIDELITY
    made(list[FidelityRow], rows, file)
    write_json(file, rows)


def read_fidelity(
    folder: Path, layers: Sequence[str], heads: int, sha256: str | None
) -> list[dict[str, Any]]:
    """Return the rows in `folder` for the map of these `layers`, as stored in the file.

    Raises UserError if they are damaged or belong to another map. `sha256` is their hash in the
    map's identity; older maps have none.
    """
    file = folder / FIDELITY
    rows = read_json(file)
    found = from_json(list[FidelityRow], rows, file)
    if not is_about(found, layers, heads) or sha256 not in (None, fidelity_digest(rows)):
        raise UserError(
            f"{file} was changed, or is not of the map beside it; take an unchanged copy, or "
            "distill again"
        )
    return rows


def is_about(rows: Sequence[FidelityRow], layers: Sequence[str], heads: int) -> bool:
    """Return True if there is exactly one row per layer and head, in order."""
    return [(row.layer, row.head) for row in rows] == [(x, n) for x in layers for n in range(heads)]
