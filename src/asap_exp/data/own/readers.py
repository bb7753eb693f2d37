"""Readers of own data: the rows of each split as tables, from files."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from asap_exp.data.cache import file_sha256
from asap_exp.data.own.columns import check_has
from asap_exp.data.own.header import value_as_name
from asap_exp.data.own.places import Place
from asap_exp.data.own.text_files import read_table
from asap_exp.data.parquet import Part, batches, columns_of, opened

REPLACE = "replace the file, or leave it out of data.path"


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

    @property
    def names_in_first_line(self) -> bool:
        """True if the names of the columns are the first line of a file, as in CSV."""
        return False

    def value_as_name(self, columns: Sequence[str] | None = None) -> str | None:
        """Return a name (of `columns`, if given) that is a value of a row taken for the names."""
        return None


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

    @property
    def names_in_first_line(self) -> bool:
        return self.place.format == "CSV"

    def value_as_name(self, columns: Sequence[str] | None = None) -> str | None:
        if not self.names_in_first_line:
            return None
        return value_as_name(self._table(self.place.splits["train"][0]), columns)

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
