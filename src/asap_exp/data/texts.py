"""Where texts come from: embedded, a local folder of Parquet files, or the hub."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from asap_exp.data.catalog import TextDataset
from asap_exp.data.sources import first_available

POOLED_TEST_SHARE = 0.2


@dataclass(frozen=True)
class RawTexts:
    """A split as it is stored; labels are 0 where the data set has none."""

    texts: list[str]
    labels: list[int]
    source: str

    @cached_property
    def sha256(self) -> str:
        """Over texts and labels in their order."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            data = text.encode()
            digest.update(f"{len(data)} {label} ".encode())
            digest.update(data)
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> "RawTexts":
        return RawTexts([self.texts[i] for i in rows], [self.labels[i] for i in rows], self.source)


def load_texts(dataset: TextDataset, split: str, root: str | None, cache: str | None) -> RawTexts:
    """The rows of `split`, in their stored order; UserError names every way to provide the data."""
    if dataset.embedded:
        return embedded(dataset, split)
    return first_available(
        dataset, split, root, cache, lambda rows, source: decoded(rows, dataset, source)
    )


def pooled(train: RawTexts, test: RawTexts, split: str, *, seed: int) -> RawTexts:
    """Both splits together, dealt anew: a fifth of the rows, drawn with `seed`, are the test split.

    The protocol of Sinkformers' IMDb run, whose draw had no seed.
    """
    everything = RawTexts(train.texts + test.texts, train.labels + test.labels, train.source)
    order = np.random.default_rng(seed).permutation(len(everything.texts))
    test_rows = round(POOLED_TEST_SHARE * len(order))
    part = order[:test_rows] if split == "test" else order[test_rows:]
    return everything.take(np.sort(part))


def decoded(rows: Any, dataset: TextDataset, source: str) -> RawTexts:
    texts = list(rows[dataset.text_column])
    if dataset.line_break is not None:
        texts = [text.replace(dataset.line_break, "\n") for text in texts]
    labels = list(rows[dataset.label_column]) if dataset.num_classes else [0] * len(texts)
    return RawTexts(texts, labels, source)


def embedded(dataset: TextDataset, split: str) -> RawTexts:
    """Lines of a file in the package, each with its newline."""
    file = files("asap_exp.data") / "excerpts" / dataset.name / f"{split}.txt"
    lines = list(io.StringIO(file.read_text(encoding="utf-8"), newline="\n"))
    return RawTexts(lines, [0] * len(lines), "embedded in the package")
