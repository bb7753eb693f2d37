"""Benchmark records: written into run directories, copied from there into `records/benchmark/`."""

from pathlib import Path
from typing import Any

from asap_exp.core.config import PathsConfig
from asap_exp.core.files import read_json
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.store import RecordKind, gathered

FORMAT = 3
BENCHMARKS = RecordKind(
    BenchmarkRecord,
    "benchmark record",
    "python -m asap_exp.benchmark",
    FORMAT,
    lambda value: {"benchmark": value.get("manifest")},
)
read_record, write_record = BENCHMARKS.read, BENCHMARKS.write
load_records = BENCHMARKS.load


def folder_of(paths: PathsConfig, name: str) -> Path:
    """RESULTS/runs/benchmark/NAME/ holds manifest.json and, once finished, metrics.json."""
    return paths.runs / "benchmark" / name


def gather(paths: PathsConfig, folder: Path) -> list[Path]:
    """Copies the record of every finished benchmark into `folder`; returns the copies.

    A damaged one is left out with a warning.
    """
    return gathered(sorted(folder_of(paths, "*").parent.glob("*/metrics.json")), named, folder)


def named(source: Path) -> tuple[str, Any]:
    """The name of the copy of a record, which is the record's own, and its JSON."""
    value = read_json(source)
    return f"{BENCHMARKS.from_json(value, source).name}.json", value


def notes(record: BenchmarkRecord) -> list[str]:
    """Why rows and cells have no time or a scaled one, each reason with its lengths."""
    lengths: dict[tuple[str, str, str], list[int]] = {}
    for row, cell in record.cells:
        if cell.message is not None:
            lengths.setdefault((cell.label, cell.status, cell.message), []).append(row.n)
    why = [
        f"{label}: {status} at n = {', '.join(map(str, n))}: {message}"
        for (label, status, message), n in lengths.items()
    ]
    return [*record.left_out, *why]
