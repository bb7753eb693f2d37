"""Local Parquet files: finding the files of a split, and reading their columns."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asap_exp.core.errors import UserError

ROWS_AT_ONCE = 2000
"""Rows per read: Arrow cannot read 2 GiB of image bytes at once."""
AGAIN = "fetch it again with scripts/download_data.py"
NO_PARQUET = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file with git lfs pull",
    b"<": "it is a web page; fetch the file itself",
}
"""Beginnings of files that a failed download leaves in place of a Parquet file."""


class Part(NamedTuple):
    """Rows of a split; `name` is the path of their file, or their source.

    `rows` are their numbers there, in ascending order; None if these are all rows.
    """

    name: str
    table: pa.Table
    rows: np.ndarray | None = None

    def place(self, row: int) -> str:
        """Describe the position of `row` for an error message."""
        number = row if self.rows is None else int(self.rows[row])
        return f"row {number} (counted from 0) of {self.name}"

    def take(self, rows: np.ndarray) -> "Part":
        """Return the part with these of its rows, in ascending order."""
        numbers = rows if self.rows is None else self.rows[rows]
        return self._replace(table=self.table.take(pa.array(rows)), rows=numbers)

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the schema's names for the classes of `column`, or None if it has none."""
        return class_names(self.table.schema, column)


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Return SPLIT.parquet, or else the shards of the split; empty if there are none.

    Names of shards may carry the suffixes that hubs (-0f1e2d3c...) and browsers (" (1)") add.
    Raises UserError if a shard is missing or there twice, or if a path is not a file.
    """
    found = sorted(
        path
        for path in folder.glob(f"{split}*.parquet")
        if re.fullmatch(rf"{split}( ?\(\d+\)|-.*)?\.parquet", path.name)
    )
    whole = [path for path in found if not path.name.startswith(f"{split}-")]
    exact = folder / f"{split}.parquet"
    files = [exact] if exact in whole else whole or found
    for file in files:
        if not file.is_file():
            kind = "a folder" if file.is_dir() else "a link to nothing"
            raise UserError(
                f"{file} is {kind}, where a Parquet file is expected; put the file itself there, "
                f"or shards that are called {split}-00000-of-00002.parquet and so on"
            )
    if len(whole) > 1 and exact not in whole:
        raise UserError(
            f"{' and '.join(map(str, whole))} are both the split {split}; keep one of them, as "
            f"{exact.name}"
        )
    check_shards(folder, split, files)
    return files


def check_shards(folder: Path, split: str, files: list[Path]) -> None:
    """Raise UserError if the names of the shards show that some are missing or duplicated."""
    named = [re.match(rf"{split}-(\d+)-of-(\d+)(?!\d)", file.name) for file in files]
    totals = sorted({match[2] for match in named if match})
    if not totals:
        return
    seen: dict[int, Path] = {}
    for file, match in zip(files, named, strict=True):
        other = seen.setdefault(int(match[1]), file) if match else file
        if other != file:
            raise UserError(f"{other} and {file} are the same shard of {split}; keep one of them")
    if {int(total) for total in totals} != {len(files)}:
        raise UserError(
            f"{folder} holds {len(files)} shards of {split}, but their names say "
            f"{' and '.join(totals)}; a subset is not accepted as the whole split"
        )


def read_parts(files: Sequence[Path], columns: Sequence[str]) -> list[Part]:
    """Read `columns` of each file that has rows; raise UserError if no file has any."""
    parts = [Part(str(file), read_columns(file, columns)) for file in files]
    parts = [part for part in parts if part.table.num_rows]
    if not parts:
        raise UserError(f"{' and '.join(map(str, files))}: no rows found; {AGAIN}")
    return parts


def taken(parts: Sequence[Part], rows: np.ndarray) -> list[Part]:
    """Return the given rows, in ascending order, of consecutive parts."""
    ends = np.cumsum([part.table.num_rows for part in parts])
    starts = np.concatenate([[0], ends[:-1]])
    return [
        part.take(own - start)
        for part, start, end in zip(parts, starts, ends, strict=True)
        if len(own := rows[(rows >= start) & (rows < end)])
    ]


def read_columns(file: Path, columns: Sequence[str]) -> pa.Table:
    """Read `columns` of a Parquet file; raise UserError with the reason if it cannot be read."""
    with opened(file) as parquet:
        schema = columns_of(parquet, file, columns)
        return pa.Table.from_batches(batches(parquet, schema), schema)


def columns_of(
    parquet: pq.ParquetFile, file: Path, columns: Sequence[str], again: str = AGAIN
) -> pa.Schema:
    """Return the schema of some columns; raise UserError if one is missing or there twice."""
    there = parquet.schema_arrow.names
    missing = [column for column in columns if column not in there]
    if missing and parquet.metadata.num_rows:
        raise UserError(
            f"{file} has no column {' and no column '.join(missing)}; its columns are "
            f"{', '.join(there) or 'none'}. Rename them, or {again}"
        )
    if twice := [column for column in columns if there.count(column) > 1]:
        raise UserError(f"{file} has two columns {twice[0]}; rename or drop one of them")
    fields = [parquet.schema_arrow.field(column) for column in columns if column in there]
    return pa.schema(fields, parquet.schema_arrow.metadata)


def batches(parquet: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the columns of `schema`, `ROWS_AT_ONCE` rows at a time."""
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=schema.names):
        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


@contextmanager
def opened(file: Path, again: str = AGAIN) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; raise UserError with the reason if it cannot be read.

    `again` says how to mend the file.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{file} is not a Parquet file, or is damaged: {damage(file, error, again)}"
        ) from error
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({reason}); {again}") from error


def damage(file: Path, error: Exception, again: str = AGAIN) -> str:
    """Describe what `file` seems to be instead of a Parquet file, and what to do."""
    with file.open("rb") as content:
        beginning = content.read(64).lstrip()
    for start, words in NO_PARQUET.items():
        if beginning.startswith(start):
            return words
    if not beginning:
        return f"it is empty; {again}"
    return f"{str(error).rstrip('.')}; {again}"


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the class names in Hugging Face's metadata; None if there are none or duplicates."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = tuple(features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    return names
