"""Benchmark records: written into run directories, copied from there into `results/records/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asap_exp.core.config import PathsConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.sealed import SEAL, sealed
from asap_exp.core.typed import check_format, from_json, made, to_json
from asap_exp.report.readable import readable
from asap_exp.report.records import copied, record_files

FORMAT = 3
"""Records of format 2 are older than seals; one that carries a seal all the same is held to it."""

AGAIN = "python -m asap_exp.benchmark"


def folder_of(paths: PathsConfig, name: str) -> Path:
    """RESULTS/runs/benchmark/NAME/ holds manifest.json and, once finished, metrics.json."""
    return paths.runs / "benchmark" / name


def record_from_json(value: Any, file: Path) -> BenchmarkRecord:
    """UserError where it is no record, was changed, or is not of a finished run."""
    check_format(value, FORMAT, file, "benchmark record")
    version = value.get("format")
    if isinstance(version, bool) or version not in (2, FORMAT):
        raise UserError(f"{file} is no benchmark record of this version (format {FORMAT})")
    if version == FORMAT and SEAL not in value:
        raise UserError(f"{file} is damaged: {SEAL} is missing. Make it again with: {AGAIN}")
    record = from_json(BenchmarkRecord, value, file, AGAIN)
    if not record.manifest.finished:
        raise UserError(
            f"{file} has no manifest of a finished run: a number without one is not reported"
        )
    return record


def write_record(file: Path, content: Mapping[str, Any]) -> BenchmarkRecord:
    """Seals and writes a record, if it is one that can be read."""
    value = sealed(to_json(content))
    made(BenchmarkRecord, value, file)
    record = record_from_json(value, file)
    write_json(file, value)
    return record


def read_record(file: Path) -> BenchmarkRecord:
    return record_from_json(read_json(file), file)


def load_records(folder: Path, *, strict: bool = False) -> list[BenchmarkRecord]:
    """In order of name; a damaged one is left out with a warning, or, if `strict`, refused."""
    return readable(record_files(folder), read_record, strict=strict)


def gather(paths: PathsConfig, folder: Path) -> list[Path]:
    """Copies the record of every finished benchmark into `folder`; returns what it copied.

    One that is damaged is left out with a warning.
    """
    sources = sorted(folder_of(paths, "*").parent.glob("*/metrics.json"))
    found = readable(sources, named, strict=False)
    # Not while they are read: that a copy cannot be written is no damage of its record.
    return [copied(value, folder / name) for name, value in found]


def named(source: Path) -> tuple[str, Any]:
    """The record in `source`, and the name of its copies, which is its own."""
    value = read_json(source)
    return f"{record_from_json(value, source).name}.json", value


def notes(record: BenchmarkRecord) -> list[str]:
    """Why rows and cells are without a time or with a scaled one, each reason with its lengths."""
    lengths: dict[tuple[str, str, str], list[int]] = {}
    for row, cell in record.cells:
        if cell.message is not None:
            lengths.setdefault((cell.label, cell.status, cell.message), []).append(row.n)
    why = [
        f"{label}: {status} at n = {', '.join(map(str, n))}: {message}"
        for (label, status, message), n in lengths.items()
    ]
    return [*record.left_out, *why]
