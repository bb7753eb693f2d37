"""Labels as integers from 0, whatever a file holds; classes are identified by their names."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa

from asap_exp.core.errors import UserError
from asap_exp.data.catalog import Dataset
from asap_exp.data.parquet import Part

Names = tuple[str, ...] | None
"""Names of the classes 0, 1, ...; None if unknown."""


class Labels(NamedTuple):
    """int64 `numbers` of all rows, and the class `names` in that numbering."""

    numbers: np.ndarray
    names: Names


def labels_of(parts: Sequence[Part], dataset: Dataset, training: Names) -> Labels:
    """Return the labels of all rows, numbered in the order of the class names `training`.

    Files may number the same classes in different orders; the schema of each file gives its own
    order. Raises UserError that names the first row whose label is not a class, or two files whose
    orders cannot be reconciled.
    """
    order = common_order(parts, dataset, training)
    return Labels(np.concatenate([part_labels(part, dataset, order) for part in parts]), order)


def common_order(parts: Sequence[Part], dataset: Dataset, training: Names) -> Names:
    """Return the class order of these files: that of training, or else the one that they share.

    Raises UserError if two files disagree.
    """
    if training is not None and not are_numbers(training, dataset.num_classes):
        return training
    named = [(part, part.class_names(dataset.label_column)) for part in parts]
    settled = [(part, own, settled_order(own, dataset)) for part, own in named if own is not None]
    worded = [each for each in settled if not are_numbers(each[2], dataset.num_classes)]
    for part, own, order in worded if dataset.labels_read else ():
        first, first_own, first_order = worded[0]
        shared = min(len(order), len(first_order))
        if order[:shared] != first_order[:shared]:
            raise UserError(
                f"{first.name} and {part.name} list the classes of {dataset.name} in different "
                f"orders ({', '.join(first_own)}; {', '.join(own)}), and neither the training "
                "split nor the catalogue says which one is right. Write both files with the same "
                "names in the same order"
            )
    if training is not None:
        return training
    return max((order for _, _, order in worded or settled), key=len, default=None)


def training_order(files: Sequence[Names], dataset: Dataset) -> Names:
    """Return the class names of the first training file, else of the first that has names.

    Consecutive numbers are not names, so words in a later file take precedence over them.
    """
    first = files[0] if files else None
    if first is not None and first != counted(first):
        return first
    named = [settled_order(names, dataset) for names in files if names is not None]
    words = [names for names in named if not are_numbers(names, dataset.num_classes)]
    return next(iter(words or named), None)


def settled_order(own: tuple[str, ...], dataset: Dataset) -> tuple[str, ...]:
    """Return the order for a file with the names `own` when the training split has no order."""
    return class_order(own, None, dataset) or own


def part_labels(part: Part, dataset: Dataset, training: Names) -> np.ndarray:
    """Return the int64 labels of one file, numbered in the order of `training`."""
    own = part.class_names(dataset.label_column)
    order = class_order(own, training, dataset)
    column = dense(part.table[dataset.label_column])
    refusal = Refusal(part, dataset, order, column)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        refusal.of(row, "give that row a label, or take it out")
    if is_text(column.type):
        return numbered(column.to_pylist(), refusal)
    numbers = whole_numbers(column, refusal)
    if not dataset.labels_read:
        return numbers
    if own is None or order is None or own == order:
        return refusal.checked(numbers, dataset.num_classes)
    # Translate the file's own numbers through their names.
    words = [own[number] for number in refusal.checked(numbers, len(own))]
    return numbered(words, refusal, digits=are_numbers(own, dataset.num_classes))


def class_order(own: Names, training: Names, dataset: Dataset) -> Names:
    """Return the class order to which a file's labels are converted.

    This is the order of the training split if it has names; else that of the catalogue if it
    contains all names of the file; else the file's own order, which cannot be compared with
    anything. Names that are plain numbers are compared only with other numbers.
    """
    known, classes = dataset.class_names, dataset.num_classes
    if own is not None and are_numbers(own, classes):
        numbers = counted(own)
        order = training if training is not None and are_numbers(training, classes) else numbers
        return own if own == numbers and order == numbers[: len(order)] else order
    if training is not None and not are_numbers(training, classes):
        return training
    if own is not None and known is not None and not set(own) <= set(known):
        return own
    return known or own


def are_numbers(names: Sequence[str], classes: int) -> bool:
    """Return True if the names are class numbers from 0.

    The numbers 1 to 4 for four classes are not: they count as names.
    """
    return set(names) <= set(map(str, range(max(classes, len(names)))))


def counted(names: Sequence[str]) -> tuple[str, ...]:
    """Return the numbers of the classes as strings: "0", "1", ..."""
    return tuple(map(str, range(len(names))))


class Refusal:
    """Checks on the labels of one file; errors name the first label that is not allowed."""

    def __init__(self, part: Part, dataset: Dataset, order: Names, column: pa.ChunkedArray) -> None:
        self.part, self.dataset, self.order, self.column = part, dataset, order, column

    def of(
        self,
        row: int,
        advice: str,
        allowed: str | None = None,
        *,
        value: Any = None,
        classes: int | None = None,
    ) -> NoReturn:
        """Raise UserError about the label in `row`; `value` overrides the label that is shown."""
        value = self.column[row].as_py() if value is None else value
        shown = str(value) if isinstance(value, Decimal) else f"{value!r}"
        shown = "no label" if value is None else shown
        names = f", or {allowed}" if allowed else ""
        raise UserError(
            f"the labels of {self.dataset.name} cannot be used: column {self.dataset.label_column} "
            f"has {shown} in {self.part.place(row)}; allowed are whole numbers from 0 to "
            f"{(classes or self.dataset.num_classes) - 1}{names}. To go on, {advice}"
        )

    def checked(self, numbers: np.ndarray, classes: int) -> np.ndarray:
        """Return `numbers` if all lie in 0..`classes` - 1, else raise UserError."""
        outside = (numbers < 0) | (numbers >= classes)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            advice = "correct the column, or take such rows out"
            if numbers.min() == 1 and numbers.max() == classes:
                advice = "subtract 1 from all labels, which seem to count from 1"
            elif numbers[row] == -1:
                advice = (
                    "take such rows out, or use a split whose labels are public: -1 stands for a "
                    "hidden label"
                )
            if classes >= self.dataset.num_classes:
                self.of(row, advice)
            own = ", ".join(self.part.class_names(self.dataset.label_column) or ())
            plural = "class" if classes == 1 else "classes"
            advice = f"{advice}; this file names only {classes} {plural} ({own})"
            self.of(row, advice, classes=classes)
        return numbers


def whole_numbers(column: pa.ChunkedArray, refusal: Refusal) -> np.ndarray:
    """Return the column as int64; refuse fractions and non-numeric types."""
    kind = column.type
    if pa.types.is_boolean(kind) and refusal.dataset.num_classes == 2:
        return column.cast(pa.int64()).to_numpy()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64()).to_numpy()
        broken = ~(np.isfinite(numbers) & (numbers == np.floor(numbers)))
        if broken.any():
            row = int(np.flatnonzero(broken)[0])
            refusal.of(row, "correct the column, or take such rows out")
        return numbers.clip(-(2.0**62), 2.0**62).astype(np.int64)
    if not pa.types.is_integer(kind):
        refusal.of(0, f"convert the column to whole numbers; its type is {kind}")
    numbers = column.to_numpy()
    if numbers.dtype == np.uint64:
        numbers = np.minimum(numbers, np.iinfo(np.int64).max)
    return numbers.astype(np.int64)


def numbered(words: Sequence[str], refusal: Refusal, *, digits: bool = True) -> np.ndarray:
    """Return the number of each class name; with `digits`, a name may also be its number.

    Raises UserError for the first unknown name.
    """
    order = refusal.order
    if order is None:
        refusal.of(0, "replace the words by the numbers of the classes")
    plain = {str(label): label for label in range(refusal.dataset.num_classes)}
    # Numbers that are names (1 to 4 for four classes) must not be read as class numbers.
    if not digits or any(name.isdecimal() and name not in plain for name in order):
        plain = {}
    number = plain | {name: place for place, name in enumerate(order)}
    numbers = np.array([number.get(word, -1) for word in words], dtype=np.int64)
    unknown = np.flatnonzero((numbers < 0) | (numbers >= refusal.dataset.num_classes))
    if len(unknown):
        row = int(unknown[0])
        names = ", ".join(order[: refusal.dataset.num_classes])
        refusal.of(
            row,
            "correct the name, or take such rows out",
            f"the names of the classes ({names})",
            value=words[row],
        )
    return numbers


def dense(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of a column, decoded if it is dictionary-encoded."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def is_text(kind: pa.DataType) -> bool:
    """Return True for the Arrow string types."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
