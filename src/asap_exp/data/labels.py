"""Labels as whole numbers from 0, whatever a file holds; a class is known by its name."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from asap_exp.data.catalog import Dataset
from asap_exp.data.parquet import Part
from asap_exp.errors import UserError

Names = tuple[str, ...] | None
"""What the classes 0, 1, ... are called; None where nobody says it."""


def labels_of(parts: Sequence[Part], dataset: Dataset, training: Names) -> np.ndarray:
    """int64 labels of all rows, numbered as `training` names the classes.

    Files may number the same classes in different orders: each one's own order is in its schema.
    UserError names the first row whose label is none of the classes.
    """
    return np.concatenate([part_labels(part, dataset, training) for part in parts])


def part_labels(part: Part, dataset: Dataset, training: Names) -> np.ndarray:
    own = part.class_names(dataset.label_column)
    order = class_order(own, training, dataset.class_names)
    column = dense(part.table[dataset.label_column])
    refusal = Refusal(part, dataset, order)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        refusal.of(row, None, "give that row a label, or take it out")
    if is_text(column.type):
        return numbered(column.to_pylist(), refusal)
    numbers = whole_numbers(column, refusal)
    if not dataset.labels_read:
        return numbers
    if own is None or order is None or own == order:
        return refusal.checked(numbers, dataset.num_classes)
    # The file's own numbers first become names.
    words = [own[number] for number in refusal.checked(numbers, len(own))]
    return numbered(words, refusal)


def class_order(own: Names, training: Names, known: Names) -> Names:
    """The order of classes that a file's labels are brought into.

    That of the training split, if it has names; else that of the catalogue, if all of the file's
    names are among those; else the file's own, with which nothing can be compared. Numbers are no
    names, but for one another.
    """
    if own is not None and are_numbers(own):
        counted = tuple(map(str, range(len(own))))
        order = training if training is not None and are_numbers(training) else counted
        return own if own == counted and order == counted[: len(order)] else order
    if training is not None and not are_numbers(training):
        return training
    if own is not None and known is not None and not set(own) <= set(known):
        return own
    return known or own


def are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdigit() for name in names)


class Refusal:
    """Checks labels of one file, and says what is wrong with the first that is not allowed."""

    def __init__(self, part: Part, dataset: Dataset, order: Names) -> None:
        self.part, self.dataset, self.order = part, dataset, order

    def of(self, row: int, value: Any, advice: str, allowed: str | None = None) -> NoReturn:
        shown = "no label" if value is None else f"{value!r}"
        names = f", or {allowed}" if allowed else ""
        raise UserError(
            f"the labels of {self.dataset.name} cannot be used: column {self.dataset.label_column} "
            f"has {shown} in {self.part.place(row)}; allowed are whole numbers from 0 to "
            f"{self.dataset.num_classes - 1}{names}. To go on, {advice}"
        )

    def checked(self, numbers: np.ndarray, classes: int) -> np.ndarray:
        """Refuses what is not below `classes`."""
        outside = (numbers < 0) | (numbers >= classes)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            advice = "correct the column, or take such rows out"
            if numbers.min() == 1 and numbers.max() == classes:
                advice = "subtract 1 from all labels, which seem to count from 1"
            elif numbers[row] == -1:
                advice = (
                    "take such rows out, or use a split whose labels are public: -1 stands for a "
                    "label that is not told"
                )
            self.of(row, numbers[row].item(), advice)
        return numbers


def whole_numbers(column: pa.ChunkedArray, refusal: Refusal) -> np.ndarray:
    """int64; refuses fractions, and types that hold no numbers."""
    kind = column.type
    if pa.types.is_boolean(kind) and refusal.dataset.num_classes == 2:
        return column.cast(pa.int64()).to_numpy()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64()).to_numpy()
        broken = ~(np.isfinite(numbers) & (numbers == np.floor(numbers)))
        if broken.any():
            row = int(np.flatnonzero(broken)[0])
            refusal.of(row, numbers[row].item(), "correct the column, or take such rows out")
        return numbers.clip(-(2.0**62), 2.0**62).astype(np.int64)
    if not pa.types.is_integer(kind):
        value = column[0].as_py()
        refusal.of(0, value, f"make the column one of whole numbers; it is of type {kind}")
    numbers = column.to_numpy()
    if numbers.dtype == np.uint64:
        numbers = np.minimum(numbers, np.iinfo(np.int64).max)
    return numbers.astype(np.int64)


def numbered(words: Sequence[str], refusal: Refusal) -> np.ndarray:
    """The number of each class name; refuses other words."""
    order = refusal.order
    if order is None:
        refusal.of(0, words[0], "put the classes' numbers in place of words")
    digits = {str(label): label for label in range(refusal.dataset.num_classes)}
    number = digits | {name: place for place, name in enumerate(order)}
    numbers = np.array([number.get(word, -1) for word in words], dtype=np.int64)
    unknown = np.flatnonzero((numbers < 0) | (numbers >= refusal.dataset.num_classes))
    if len(unknown):
        row = int(unknown[0])
        names = ", ".join(order[: refusal.dataset.num_classes])
        refusal.of(
            row,
            words[row],
            "correct the name, or take such rows out",
            f"the names of the classes ({names})",
        )
    return numbers


def dense(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a column that may hold numbers of a dictionary's entries."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
