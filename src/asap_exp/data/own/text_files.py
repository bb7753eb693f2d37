"""CSV and JSON lines files as tables."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from asap_exp.core.errors import UserError

DELIMITERS = ("\t", ";", "|")
"""Delimiters other than the comma, if the first line has them and no comma."""


def read_table(file: Path, file_format: str, text_column: str | None) -> pa.Table:
    """Read a CSV or JSON lines file, which may be compressed.

    The types of the columns are inferred, except that `text_column` is text even if it looks like
    numbers. Raises UserError if the file is not of that format.
    """
    read = {"CSV": read_csv, "JSON lines": read_json_lines}[file_format]
    try:
        return read(file, text_column)
    except (pa.ArrowInvalid, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        utf8 = "; save it as UTF-8" if "UTF8" in reason else ""
        raise UserError(f"{file} cannot be read as {file_format}: {reason}{utf8}") from error


def read_csv(file: Path, text_column: str | None) -> pa.Table:
    """Read a CSV file whose first line names the columns; quoted values may hold line breaks."""
    types = {text_column: pa.large_string()} if text_column else {}
    with pa.input_stream(str(file)) as stream:
        first = stream.read(2**16).split(b"\n")[0].decode(errors="replace")
    delimiter = next((d for d in DELIMITERS if d in first and "," not in first), ",")
    return pyarrow.csv.read_csv(
        str(file),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )


def read_json_lines(file: Path, text_column: str | None) -> pa.Table:
    """Read a file of one JSON object per line, or of one list of objects."""
    with pa.input_stream(str(file)) as stream:
        if stream.read(1) == b"[":
            return pa.Table.from_pylist(json.loads(b"[" + stream.read()))
    text = pa.schema([(text_column, pa.large_string())]) if text_column else None
    return pyarrow.json.read_json(
        str(file), parse_options=pyarrow.json.ParseOptions(explicit_schema=text)
    )
