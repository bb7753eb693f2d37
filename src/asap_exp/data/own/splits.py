"""Rows of the splits of own data, held out by the seed where the data has no such split."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from asap_exp.core.config import OwnDataConfig, OwnImageDataConfig
from asap_exp.core.config.own_data import OwnImageRequest
from asap_exp.core.errors import UserError
from asap_exp.core.locations import cache_dir
from asap_exp.core.runs import word_of
from asap_exp.data.carving import carved
from asap_exp.data.labels import Names
from asap_exp.data.own.classes import class_order, numbered, shortened, words_of
from asap_exp.data.own.columns import check_has, chosen_column, listed
from asap_exp.data.own.opening import open_own
from asap_exp.data.own.places import FOLDER
from asap_exp.data.own.readers import Reader
from asap_exp.data.subset import Limit


class Rows(NamedTuple):
    """Rows of a split: the split of the data that has them, and their numbers there, ascending."""

    where: str
    numbers: np.ndarray


class OwnSplits(ABC):
    """Own data as training, validation and test rows with their labels.

    `trained_names` are the classes of a model that is trained already. Nothing is read before it
    is asked for.
    """

    kind: str
    """Kind of the samples, in the plural: images or texts."""

    def __init__(self, config: OwnDataConfig, trained_names: Names = None) -> None:
        self.config, self.trained_names = config, trained_names
        self._labels: dict[str, np.ndarray] = {}
        self._usable: dict[str, np.ndarray] = {}

    @cached_property
    def reader(self) -> Reader:
        """Reader of the data; raises DataNotFound if there is none."""
        config = self.config
        return open_own(
            config.path, config.root, cache_dir(config.cache), config.configuration, self.kind
        )

    @property
    def has_classes(self) -> bool:
        """True if rows have a class."""
        return True

    @cached_property
    def label_column(self) -> str:
        """Column of the classes; UserError if its name is a value: the file has no header then."""
        given = self.config.label_column
        found = self.column("label", given, (self.sample_column,))
        if given is None and self.given_column is None and self.reader.value_as_name([found]):
            raise UserError(
                f"{self.without_header(found)}; if it is a name, say so with "
                f"{word_of('data.label_column', found)}",
                key="data.label_column",
                value=found,
            )
        return found

    def without_header(self, name: str) -> str:
        """Return a sentence about a column's name that is a value."""
        return (
            f"the first line of {self.config.path} must name the columns, but "
            f"{shortened([name])} is a value: "
            "put a line of names above it, such as text,label"
        )

    @cached_property
    def sample_column(self) -> str:
        """Column of the images or texts."""
        return self.column(self.kind.removesuffix("s"), self.given_column)

    @property
    @abstractmethod
    def given_column(self) -> str | None:
        """Column of the images or texts in the configuration."""

    def column(self, what: str, given: str | None, taken: Sequence[str] = ()) -> str:
        """Return the column of images, labels or texts; every split must have it."""
        reader, place = self.reader, f"{self.config.path} (train)"
        for split in reader.splits:
            if not reader.count(split):
                raise UserError(
                    f"the split {split} of {self.config.path} has no rows; give it some, or leave "
                    "its file out of data.path"
                )
        try:
            found = chosen_column(what, given, reader.schema("train"), place, taken)
        except UserError as error:
            if (value := reader.value_as_name()) is None:
                raise
            raise UserError(
                f"{error}. Perhaps it has no header: {self.without_header(value)}",
                key=error.key,
                value=error.value,
                allowed=error.allowed,
            ) from error
        for split in reader.splits:
            check_has([found], reader.schema(split), f"{self.config.path} ({split})")
        return found

    @cached_property
    def names(self) -> Names:
        """Classes in the order of the model's outputs; None without classes."""
        if not self.has_classes:
            return None
        if self.trained_names is not None:
            return self.trained_names
        column = self.label_column
        words = [words_of(part, column) for part in self.reader.read("train", [column])]
        return tuple(class_order(words, column, self.config.path, self.config.num_classes))

    def labels(self, where: str) -> np.ndarray:
        """Return the int64 labels of all rows of a split that the data has; 0 without classes."""
        if where not in self._labels:
            self._labels[where] = self._read_labels(where)
        return self._labels[where]

    def _read_labels(self, where: str) -> np.ndarray:
        if self.names is None:
            return np.zeros(self.reader.count(where), dtype=np.int64)
        parts = self.reader.read(where, [self.label_column])
        labels = [numbered(part, self.label_column, self.names) for part in parts]
        return np.concatenate(labels) if labels else np.zeros(0, dtype=np.int64)

    def usable(self, where: str) -> np.ndarray:
        """Return the rows of a split of the data that are used, ascending."""
        if where not in self._usable:
            self._usable[where] = self._find_usable(where)
        return self._usable[where]

    def _find_usable(self, where: str) -> np.ndarray:
        return np.arange(len(self.labels(where)))

    def check_classes_have_rows(self) -> None:
        """Raise UserError that lists the columns if every training row has a class of its own.

        No row can be held out then, and most likely the classes are in another column.
        """
        rows, in_folders = self.reader.count("train"), self.reader.source.endswith(FOLDER)
        if in_folders or not self.has_classes or len(np.unique(self.labels("train"))) < rows:
            return
        column = self.label_column
        raise UserError(
            f"column {column} of {self.config.path} (train) has another class in each of the "
            f"{rows} rows, so that none can be held out. Its columns are "
            f"{listed(self.reader.schema('train'))}; set data.label_column=NAME, or add rows, so "
            "that a class has two or more",
            key="data.label_column",
            value=column,
        )

    @cached_property
    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and test rows of the training split that the data has, without a limit."""
        rows = self.usable("train")
        if "test" in self.reader.splits:
            return rows, rows[:0]
        fraction = self.config.test_fraction
        if fraction is None:
            raise UserError(
                f"data.test_fraction=null, but {self.config.path} has no test split; choose a "
                "fraction such as 0.2"
            )
        self.check_classes_have_rows()
        train, test = carved(
            self.labels("train")[rows],
            fraction,
            seed=self.config.split_seed,
            sample_name=self.kind,
            key="data.test_fraction",
            part="test",
        )
        return rows[train], rows[test]

    def whole(self, split: str) -> Rows:
        """Return all rows of a split."""
        train, test = self.held_out
        if split == "train":
            return Rows("train", train)
        if split == "test" and len(test):
            return Rows("train", test)
        return Rows(split, self.usable(split))

    def rows(self, split: str) -> Rows:
        """Return the rows of a split, of which there are at most `data.limit`."""
        where, numbers = self.whole(split)
        limit = Limit(self.config.limit, self.config.split_seed)
        chosen = limit.rows(self.labels(where)[numbers])
        return Rows(where, numbers if chosen is None else numbers[chosen])

    def rows_in_all(self) -> dict[str, int]:
        """Return the number of rows of each split without a limit."""
        splits = dict.fromkeys(("train", *self.reader.splits, "test"))
        return {split: len(self.whole(split).numbers) for split in splits}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the data's files by name and size, and of its labels; it needs no decoding."""
        digest = hashlib.sha256(json.dumps(self.reader.listing()).encode())
        for split in self.reader.splits:
            names = json.dumps(self.names).encode()
            digest.update(names + self.labels(split).tobytes())
        return digest.hexdigest()[:16]


class ImageSplits(OwnSplits):
    """Own images."""

    kind = "images"
    config: OwnImageRequest | OwnImageDataConfig

    @property
    def given_column(self) -> str | None:
        return self.config.image_column
