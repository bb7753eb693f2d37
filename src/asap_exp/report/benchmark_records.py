"""Benchmark records: written into run directories, then copied to `records/benchmark/`."""

from pathlib import Path

from asap_exp.core.config import PathsConfig
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.store import RecordKind, gathered_by_name

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
    """Return RESULTS/runs/benchmark/NAME; it holds manifest.json and, if finished, metrics.json."""
    return paths.runs / "benchmark" / name


def gather(paths: PathsConfig, folder: Path) -> list[Path]:
    """Copy the record of every finished benchmark into `folder`; return the copies.

    A damaged one is left out with a warning.
    """
    sources = sorted(folder_of(paths, "*").parent.glob("*/metrics.json"))
    return gathered_by_name(BENCHMARKS, sources, folder)


def notes(record: BenchmarkRecord) -> list[str]:
    """Explain rows and cells without a time or with a scaled one: each reason with its lengths."""
    lengths: dict[tuple[str, str, str], list[int]] = {}
    for row, cell in record.cells:
        if cell.message is not None:
            lengths.setdefault((cell.label, cell.status, cell.message), []).append(row.n)
    why = [
        f"{label}: {status} at n = {', '.join(map(str, n))}: {message}"
        for (label, status, message), n in lengths.items()
    ]
    return [*record.left_out, *why]
