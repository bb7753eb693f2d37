"""Classes of own data: kept by name, whatever numbers or words a column holds."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asap_exp.core.errors import UserError
from asap_exp.data.labels import dense, is_text
from asap_exp.data.parquet import Part

ANOTHER = "another column is data.label_column=NAME"
SHOWN = 10
"""Classes that a message lists."""
FEW = 20
"""Number of classes that even few rows may have."""


class Words(NamedTuple):
    """Classes of a part's rows by name: `names[number[i]]` is that of row i.

    `kind` says what the file holds: `words`, `numbers` without names, or `listed` names, that is,
    numbers of the classes that its schema lists in their order.
    """

    number: np.ndarray
    names: list[str]
    kind: str


def words_of(part: Part, column: str) -> Words:
    """Return the class names of a part's rows.

    Raises UserError that names the first row whose label is missing, or not a class.
    """
    values = dense(part.table[column]).combine_chunks()
    missing = values.is_null()
    if is_text(values.type):
        missing = pc.or_(missing, pc.equal(values, ""))
    if (rows := np.flatnonzero(missing.to_numpy(zero_copy_only=False))).size:
        raise UserError(
            f"column {column} has no label in {part.place(int(rows[0]))}; give that row one, or "
            f"take it out ({ANOTHER})"
        )
    schema_names = part.class_names(column)
    kind = values.type
    if is_text(kind):
        return encoded(values, "words")
    if pa.types.is_boolean(kind):
        return encoded(values.cast(pa.string()), "words")
    numbers = whole(values, part, column)
    if schema_names is None:
        return encoded(pa.array(numbers), "numbers")
    outside = np.flatnonzero((numbers < 0) | (numbers >= len(schema_names)))
    if outside.size:
        row = int(outside[0])
        hidden = " (-1 stands for a hidden label)" if numbers[row] == -1 else ""
        raise UserError(
            f"column {column} has {numbers[row]} in {part.place(row)}{hidden}, but its "
            f"{len(schema_names)} classes count from 0 to {len(schema_names) - 1}; correct the "
            f"row, or take it out ({ANOTHER})"
        )
    return Words(numbers, list(schema_names), "listed")


def encoded(values: pa.Array, kind: str) -> Words:
    """Return the values as indices into their distinct ones, as text."""
    found = values.dictionary_encode()
    number = found.indices.to_numpy().astype(np.int64)
    return Words(number, [str(name) for name in found.dictionary.to_pylist()], kind)


def whole(values: pa.Array, part: Part, column: str) -> np.ndarray:
    """Return int64 numbers; raise UserError that names the first value that is not whole."""
    kind = values.type
    if pa.types.is_integer(kind):
        return values.to_numpy().astype(np.int64)
    if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UserError(
            f"column {column} of {part.name} holds {kind}, which is no class; classes are text or "
            f"whole numbers ({ANOTHER})"
        )
    numbers = values.cast(pa.float64()).to_numpy()
    broken = np.flatnonzero(~(np.isfinite(numbers) & (numbers == np.floor(numbers))))
    if broken.size:
        row = int(broken[0])
        raise UserError(
            f"column {column} has {numbers[row]:g} in {part.place(row)}, which is no class; "
            f"classes are text or whole numbers, and quantities are not predicted ({ANOTHER})"
        )
    return numbers.astype(np.int64)


def class_order(words: Sequence[Words], column: str, place: str, wanted: int | None) -> list[str]:
    """Return the names of the classes in the order of the model's outputs.

    It is the order that the files list, if they agree, else the numeric or alphabetic one.
    `wanted` is `data.num_classes`, if given. Raises UserError if these can hardly be classes.
    """
    rows = sum(len(each.number) for each in words)
    numeric = all(each.kind == "numbers" for each in words)
    seen = {name for each in words for name in each.names}
    first = words[0]
    if first.kind == "listed" and all(each.names == first.names for each in words):
        names = first.names
    else:
        names = sorted(seen, key=int if numeric else None)
    if wanted is not None and wanted != len(names):
        counting = [str(number) for number in range(wanted)]
        if not (numeric and seen <= set(counting)):
            raise UserError(
                f"data.num_classes={wanted}, but column {column} of {place} has the {len(names)} "
                f"classes {shortened(names)}; leave data.num_classes out, or choose another column "
                "with data.label_column=NAME",
                key="data.num_classes",
                value=wanted,
            )
        names = counting
    if len(names) < 2:
        raise UserError(
            f"column {column} of {place} has one class, {names[0]}, so there is nothing to "
            f"predict ({ANOTHER})"
        )
    if len(names) > max(FEW, rows / 2):
        raise UserError(
            f"column {column} of {place} has {len(names):,} different values in {rows:,} rows "
            f"({shortened(names)}), so these are hardly classes ({ANOTHER})"
        )
    return names


def numbered(part: Part, column: str, names: Sequence[str]) -> np.ndarray:
    """Return the int64 labels of a part in the order of `names`.

    Raises UserError that names the first row whose class is not among them.
    """
    words = words_of(part, column)
    place = {name: number for number, name in enumerate(names)}
    places = np.array([place.get(name, -1) for name in words.names], dtype=np.int64)
    labels = places[words.number]
    if (unknown := np.flatnonzero(labels < 0)).size:
        row = int(unknown[0])
        raise UserError(
            f"column {column} has the class {words.names[words.number[row]]} in {part.place(row)}, "
            f"which is not among the {len(names)} classes of the training split "
            f"({shortened(names)}). Take such rows out, or add some of that class to the training "
            f"split and train again ({ANOTHER})"
        )
    return labels


def shortened(names: Iterable[str]) -> str:
    """List the names, the first few if there are many."""
    names = [name if len(name) <= 40 else f"{name[:40]}..." for name in names]
    more = f", ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
