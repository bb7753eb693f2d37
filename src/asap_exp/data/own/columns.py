"""Columns of own data: the one given, or the only one that fits."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from asap_exp.core.errors import UserError
from asap_exp.data.labels import is_text
from asap_exp.data.parquet import class_names

USUAL = {
    "image": ("image", "img", "images"),
    "label": ("label", "labels", "class", "category", "target", "topic", "sentiment"),
    "text": ("text", "sentence", "content", "review", "document"),
}
"""Names of columns by what they hold, the most usual first."""


def chosen_column(
    what: str, given: str | None, schema: pa.Schema, place: str, taken: Sequence[str] = ()
) -> str:
    """Return the column of images, labels or texts (`what`): the one given, or one that fits.

    A usual name comes first, then the only column of a fitting type that is not `taken`. Raises
    UserError that lists the columns if the given one is not there, or if it cannot be told which
    one is meant.
    """
    key = f"data.{what}_column"
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise UserError(f"{place} has two columns {twice[0]}; rename or drop one of them")
    if given is not None:
        if given not in schema.names:
            raise UserError(
                f"{key}={given} is not a column of {place}; its columns are {listed(schema)}",
                key=key,
                value=given,
                allowed=tuple(schema.names),
            )
        return given
    fits = FITS[what]
    fitting = [name for name in schema.names if name not in taken and fits(name, schema)]
    listing = [name for name in fitting if class_names(schema, name) is not None]
    fitting = listing if what == "label" and listing else fitting
    usual = [name for name in USUAL[what] if name in schema.names]
    if found := [name for name in usual if name in fitting] or usual:
        return found[0]
    if len(fitting) == 1:
        return fitting[0]
    which = f"several may be meant ({', '.join(fitting)})" if fitting else "none seems to be it"
    raise UserError(
        f"it cannot be told which column of {place} holds the {what}s: {which}. Its columns are "
        f"{listed(schema)}; set {key}=NAME",
        key=key,
        allowed=tuple(schema.names),
    )


def listed(schema: pa.Schema) -> str:
    """List the columns with their types."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def may_be_image(name: str, schema: pa.Schema) -> bool:
    kind = schema.field(name).type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def may_be_label(name: str, schema: pa.Schema) -> bool:
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def may_be_text(name: str, schema: pa.Schema) -> bool:
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_text(kind) and name not in USUAL["label"]


FITS: dict[str, Callable[[str, pa.Schema], bool]] = {
    "image": may_be_image,
    "label": may_be_label,
    "text": may_be_text,
}


def check_has(columns: Sequence[str], schema: pa.Schema, place: str) -> None:
    """Raise UserError if another split or file lacks the columns of the training split."""
    for column in columns:
        if column not in schema.names:
            raise UserError(
                f"{place} has no column {column}, which the training split has; its columns are "
                f"{listed(schema)}. Rename it there"
            )
