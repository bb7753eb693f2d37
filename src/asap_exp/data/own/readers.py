"""Readers of own data: the rows of each split as tables, whatever holds them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asap_exp.core.errors import DataNotFound, UserError
from asap_exp.data.cache import file_sha256
from asap_exp.data.hub import files_of, hub_splits
from asap_exp.data.own.columns import check_has
from asap_exp.data.own.places import FOLDER, HUB, SPLIT_WORDS, Place, locate, split_of
from asap_exp.data.own.text_files import read_table
from asap_exp.data.parquet import Part, batches, columns_of, opened

REPLACE = "replace the file, or leave it out of data.path"
REASON = 300
"""Characters that are shown of what the hub answered."""
IMAGE, LABEL = "image", "label"
"""Columns of an image folder."""


class Reader(ABC):
    """Rows of own data by split.

    `path` is the place where they are, and `source` their kind, without a path of this machine.
    """

    path: str
    source: str

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Splits that the data has itself."""

    @abstractmethod
    def schema(self, split: str) -> pa.Schema:
        """Return the names and types of a split's columns."""

    @abstractmethod
    def count(self, split: str) -> int:
        """Return the number of rows."""

    @abstractmethod
    def read(
        self, split: str, columns: Sequence[str], rows: np.ndarray | None = None
    ) -> Iterator[Part]:
        """Yield `columns` of the rows (of those in `rows`, ascending), part by part."""

    @abstractmethod
    def content(self, split: str, rows: np.ndarray) -> str:
        """Return a hash of what the rows hold."""

    @abstractmethod
    def listing(self) -> list[tuple[str, str, int]]:
        """Return split, name and size of each file: cheap, and changed by nearly every change."""

    def use_as_text(self, column: str) -> None:  # noqa: B027
        """Read `column` as text, where a file does not say what its values are."""


class Files(Reader):
    """Files of one format, each with some rows of a split."""

    def __init__(self, place: Place) -> None:
        self.place, self.path, self.source = place, place.path, f"own {place.format} files"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.place.splits)

    def count(self, split: str) -> int:
        return sum(self.counts[split])

    @cached_property
    def counts(self) -> dict[str, list[int]]:
        """Rows of each file."""
        return {split: [*map(self._count, files)] for split, files in self.place.splits.items()}

    def schema(self, split: str) -> pa.Schema:
        return self._schema(self.place.splits[split][0])

    def read(
        self, split: str, columns: Sequence[str], rows: np.ndarray | None = None
    ) -> Iterator[Part]:
        start = 0
        for file, count in zip(self.place.splits[split], self.counts[split], strict=True):
            if rows is None:
                own = np.arange(count)
            else:
                first, last = np.searchsorted(rows, [start, start + count])
                own = rows[first:last] - start
            start += count
            if len(own):
                yield from self._read(file, columns, own)

    def content(self, split: str, rows: np.ndarray) -> str:
        digest = hashlib.sha256(rows.astype(np.int64).tobytes())
        for file in self.place.splits[split]:
            digest.update(file_sha256(file).encode())
        return digest.hexdigest()

    def listing(self) -> list[tuple[str, str, int]]:
        return [
            (split, file.name, file.stat().st_size)
            for split, files in self.place.splits.items()
            for file in files
        ]

    @abstractmethod
    def _count(self, file: Path) -> int: ...

    @abstractmethod
    def _schema(self, file: Path) -> pa.Schema: ...

    @abstractmethod
    def _read(self, file: Path, columns: Sequence[str], rows: np.ndarray) -> Iterator[Part]:
        """Yield `columns` of some rows of a file, in ascending order."""


class ParquetFiles(Files):
    def _count(self, file: Path) -> int:
        with opened(file, REPLACE) as parquet:
            return parquet.metadata.num_rows

    def _schema(self, file: Path) -> pa.Schema:
        with opened(file, REPLACE) as parquet:
            return parquet.schema_arrow

    def _read(self, file: Path, columns: Sequence[str], rows: np.ndarray) -> Iterator[Part]:
        start = 0
        with opened(file, REPLACE) as parquet:
            for batch in batches(parquet, columns_of(parquet, file, columns, REPLACE)):
                first, last = np.searchsorted(rows, [start, start + batch.num_rows])
                if first < last:
                    table = pa.Table.from_batches([batch])
                    whole = Part(str(file), table, np.arange(start, start + batch.num_rows))
                    yield whole.take(rows[first:last] - start)
                start += batch.num_rows


class TextFiles(Files):
    """CSV or JSON lines files, read whole and kept."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.text_column: str | None = None
        self._tables: dict[Path, pa.Table] = {}

    def use_as_text(self, column: str) -> None:
        self.text_column = column
        self._tables.clear()

    def _table(self, file: Path) -> pa.Table:
        if file not in self._tables:
            self._tables[file] = read_table(file, self.place.format, self.text_column)
        return self._tables[file]

    def _count(self, file: Path) -> int:
        return self._table(file).num_rows

    def _schema(self, file: Path) -> pa.Schema:
        return self._table(file).schema

    def _read(self, file: Path, columns: Sequence[str], rows: np.ndarray) -> Iterator[Part]:
        table = self._table(file)
        check_has(columns, table.schema, str(file))
        yield Part(str(file), table.select(list(columns))).take(rows)


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


class HubRows(Reader):
    """Data set of the Hugging Face hub, as `datasets` prepares it in the cache."""

    def __init__(self, repository: Sequence[str], cache: Path) -> None:
        self.path, self.source = repository[0], f"Hugging Face hub, {' '.join(repository)}"
        self.rows = self._known(hub_splits(tuple(repository), cache))

    def _known(self, found: dict[str, Any]) -> dict[str, Any]:
        told = {split_of(name): rows for name, rows in found.items()}
        known = {split: told[split] for split in SPLIT_WORDS if split in told}
        if "train" not in known:
            raise UserError(
                f"{self.source} has the splits {', '.join(found)}, but none to train on"
            )
        return known

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.rows)

    def schema(self, split: str) -> pa.Schema:
        return self.rows[split].data.table.schema

    def count(self, split: str) -> int:
        return len(self.rows[split])

    def read(
        self, split: str, columns: Sequence[str], rows: np.ndarray | None = None
    ) -> Iterator[Part]:
        part = Part(self.source, self.rows[split].data.table.select(list(columns)))
        yield part if rows is None else part.take(rows)

    def content(self, split: str, rows: np.ndarray) -> str:
        digest = hashlib.sha256(rows.astype(np.int64).tobytes())
        for file in files_of(self.rows[split]):
            digest.update(file_sha256(file).encode())
        return digest.hexdigest()

    def listing(self) -> list[tuple[str, str, int]]:
        return [(split, self.source, self.count(split)) for split in self.splits]


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


def open_own(
    path: str, root: str | None, cache: Path, configuration: str | None, kind: str
) -> Reader:
    """Return the reader of the own data of `kind`, images or texts, at `path`.

    Raises DataNotFound if nothing is there.
    """
    place = locate(path, root, kind)
    if place.format == HUB:
        names = [path, configuration] if configuration else [path]
        try:
            return HubRows(names, cache)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:REASON]
            raise DataNotFound(
                f"data.path={path} is neither a file nor a folder here, nor could it be fetched "
                f"from the Hugging Face hub ({reason}). Give a file, a folder or a name that is "
                "there; data.configuration=NAME chooses one of several configurations"
            ) from error
    if configuration is not None:
        raise UserError(
            f"data.configuration={configuration} is for a data set on the hub; {path} is here"
        )
    if place.format == FOLDER:
        return ImageFolders(place)
    return ParquetFiles(place) if place.format == "Parquet" else TextFiles(place)
