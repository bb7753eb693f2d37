"""Image folders in torchvision's layout."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asap_exp.core.errors import UserError
from asap_exp.data.cache import file_sha256
from asap_exp.data.own.places import Place
from asap_exp.data.own.readers import Reader
from asap_exp.data.parquet import Part

IMAGE, LABEL = "image", "label"
"""Columns of an image folder."""


class FolderPart(Part):
    """Rows of an image folder, each of which is a file."""

    def place(self, row: int) -> str:
        return str(self.table[IMAGE][row]["path"].as_py())


class ImageFolders(Reader):
    """Image folders in torchvision's layout, one for each split."""

    def __init__(self, place: Place) -> None:
        self.place, self.path, self.source = place, place.path, "own image folder"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.place.splits)

    @cached_property
    def files(self) -> dict[str, list[tuple[str, str]]]:
        """Path and class of each image."""
        return {split: class_files(folder) for split, (folder,) in self.place.splits.items()}

    def schema(self, split: str) -> pa.Schema:
        return self._table(self.files[split][:1]).schema

    def count(self, split: str) -> int:
        return len(self.files[split])

    def read(
        self, split: str, columns: Sequence[str], rows: np.ndarray | None = None
    ) -> Iterator[Part]:
        files = self.files[split]
        table = self._table(files if rows is None else [files[row] for row in rows])
        yield FolderPart(str(self.place.splits[split][0]), table, rows)

    def content(self, split: str, rows: np.ndarray) -> str:
        digest = hashlib.sha256()
        for row in rows:
            digest.update(file_sha256(Path(self.files[split][row][0])).encode())
        return digest.hexdigest()

    def listing(self) -> list[tuple[str, str, int]]:
        return [
            (split, Path(path).relative_to(self.place.splits[split][0]).as_posix(), size(path))
            for split, files in self.files.items()
            for path, _ in files
        ]

    def _table(self, files: Sequence[tuple[str, str]]) -> pa.Table:
        paths = pa.array([path for path, _ in files], pa.string())
        images = pa.StructArray.from_arrays(
            [pa.nulls(len(files), pa.binary()), paths], ["bytes", "path"]
        )
        return pa.table({IMAGE: images, LABEL: pa.array([name for _, name in files], pa.string())})


def class_files(folder: Path) -> list[tuple[str, str]]:
    """Return path and class of each image below `folder`, as torchvision's ImageFolder does.

    Hidden folders are no classes. Raises UserError if a class has no image.
    """
    from torchvision.datasets import ImageFolder

    class Visible(ImageFolder):
        def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
            names = [name for name in super().find_classes(directory)[0] if name[0] != "."]
            return names, {name: number for number, name in enumerate(names)}

    try:
        found = Visible(str(folder))
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{folder} is not an image folder with a folder of images per class: {reason}. Take "
            "other folders out, or give the folder that has the classes"
        ) from error
    return [(path, found.classes[label]) for path, label in found.samples]


def size(path: str) -> int:
    """Return the size of a file in bytes."""
    return Path(path).stat().st_size
