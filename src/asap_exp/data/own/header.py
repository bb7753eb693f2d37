"""First lines of CSV files: the names of the columns, or a row that was taken for them."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from asap_exp.data.labels import is_text
from asap_exp.data.own.columns import USUAL

WORDS = 4
"""Words of a column's name from which on it may well be a text: few names have as many."""


def value_as_name(table: pa.Table, columns: Sequence[str] | None = None) -> str | None:
    """Return a column's name that is a value, so that a row was taken for the names, or None.

    Looks at `columns` alone, if given. A first line with a usual name, such as text or label, is
    one of names, and so is one that counts them from 0, as pandas does.
    """
    names = table.column_names
    filled = [name for name in names if name]
    if {name.lower() for name in names} & {each for usual in USUAL.values() for each in usual}:
        return None
    if filled == [str(number) for number in range(len(filled))]:
        return None
    for name, values in zip(names, table.columns, strict=True):
        if (columns is None or name in columns) and is_value(name, values):
            return name
    return None


def is_value(name: str, values: pa.ChunkedArray) -> bool:
    """Return True if `name` could be, or is, one of these values."""
    kind = values.type
    if pa.types.is_boolean(kind):
        return name.lower() in ("true", "false")
    if is_text(kind):
        return bool(pc.any(pc.equal(values, name)).as_py())
    return is_number(name)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
