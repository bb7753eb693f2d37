"""Raw texts and labels: embedded, from a local folder of Parquet files, or from the hub."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import NoReturn

import numpy as np
import pyarrow as pa

from asap_exp.core.errors import UserError
from asap_exp.data.catalog import TextDataset
from asap_exp.data.labels import Names, dense, is_text, labels_of
from asap_exp.data.parquet import Part
from asap_exp.data.sources import Found, at_hand, first_available

POOLED_TEST_SHARE = 0.2
"""Share of the pooled rows that form the test split."""


@dataclass(frozen=True)
class RawTexts:
    """Texts of a split as they are stored; labels are 0 if the data set has none.

    `names` are the class names, if the source has them.
    """

    texts: list[str]
    labels: list[int]
    source: str
    names: Names = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of texts and labels in order."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            data = text.encode()
            digest.update(f"{len(data)} {label} ".encode())
            digest.update(data)
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> "RawTexts":
        texts, labels = [self.texts[i] for i in rows], [self.labels[i] for i in rows]
        return RawTexts(texts, labels, self.source, self.names)


def load_texts(dataset: TextDataset, split: str, root: str | None, cache: str | None) -> RawTexts:
    """Return the rows of `split` in their stored order.

    Raises DataNotFound that lists every way to provide the data.
    """
    if dataset.embedded:
        return embedded(dataset, split)
    return first_available(dataset, split, root, cache, lambda found: decoded(found, dataset))


def check_texts(dataset: TextDataset, split: str, root: str | None, cache: str | None) -> None:
    """Raise UserError if an available split has rows that `load_texts` would refuse."""
    if dataset.embedded or split not in dataset.rows:
        return
    found = at_hand(dataset, split, root, cache, dataset.columns)
    if found is not None:
        decoded(found, dataset)


def pooled(train: RawTexts, test: RawTexts, split: str, *, seed: int) -> RawTexts:
    """Pool both splits and split again: a fifth of the rows, drawn with `seed`, is the test split.

    This is the protocol of Sinkformers' IMDb run, whose draw was unseeded.
    """
    texts, labels = train.texts + test.texts, train.labels + test.labels
    everything = RawTexts(texts, labels, train.source, train.names)
    order = np.random.default_rng(seed).permutation(len(everything.texts))
    test_rows = round(POOLED_TEST_SHARE * len(order))
    part = order[:test_rows] if split == "test" else order[test_rows:]
    return everything.take(np.sort(part))


def decoded(found: Found, dataset: TextDataset) -> RawTexts:
    """Return the texts and labels of the rows that were found."""
    texts = [text for part in found.parts for text in part_texts(part, dataset)]
    if dataset.line_break is not None:
        texts = [text.replace(dataset.line_break, "\n") for text in texts]
    if not dataset.num_classes:
        return RawTexts(texts, [0] * len(texts), found.source)
    labels = labels_of(found.parts, dataset, found.training)
    return RawTexts(texts, labels.numbers.tolist(), found.source, labels.names)


def part_texts(part: Part, dataset: TextDataset) -> list[str]:
    """Return the texts of one file.

    Raises UserError that names the first row without a text, or whose bytes are not UTF-8.
    """
    column = dense(part.table[dataset.text_column])
    kind = column.type
    if not (is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        if column.null_count == len(column):
            refuse(part, dataset, 0, "has no text")
        raise UserError(
            f"column {dataset.text_column} of {part.name} holds {kind}, not texts; convert it to "
            f"strings, which {dataset.name} needs"
        )
    texts: list[str] = []
    for row, content in enumerate(column.cast(pa.large_binary()).to_pylist()):
        if content is None:
            refuse(part, dataset, row, "has no text")
        try:
            texts.append(content.decode())
        except UnicodeDecodeError as error:
            refuse(part, dataset, row, f"has bytes that are not UTF-8 ({error})")
    return texts


def refuse(part: Part, dataset: TextDataset, row: int, what: str) -> NoReturn:
    """Raise UserError about the text in `row`; `what` completes "column NAME ..."."""
    raise UserError(
        f"the texts of {dataset.name} cannot be used: column {dataset.text_column} {what} in "
        f"{part.place(row)}. Give that row a text, which may be empty, or remove it"
    )


def embedded(dataset: TextDataset, split: str) -> RawTexts:
    """Return the lines of a file in the package, each with its newline."""
    file = files("asap_exp.data") / "excerpts" / dataset.name / f"{split}.txt"
    lines = list(io.StringIO(file.read_text(encoding="utf-8"), newline="\n"))
    return RawTexts(lines, [0] * len(lines), "embedded in the package")
