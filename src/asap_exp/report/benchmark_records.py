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
TAKEN_OVER = (
    "measured before the benchmark was stopped and continued, with the same code, versions and "
    "hardware"
)
"""Note about rows of a benchmark that was continued."""

read_record, write_record = BENCHMARKS.read, BENCHMARKS.write
load_records = BENCHMARKS.load


def folder_of(paths: PathsConfig, name: str) -> Path:
    """Return RESULTS/runs/benchmark/NAME: manifest.json, and metrics.json or, until then, rows/."""
    return paths.runs / "benchmark" / name


def gather(paths: PathsConfig, folder: Path) -> list[Path]:
    """Copy the record of every finished benchmark into `folder`; return the copies.

    A damaged one is left out with a warning.
    """
    sources = sorted(folder_of(paths, "*").parent.glob("*/metrics.json"))
    return gathered_by_name(BENCHMARKS, sources, folder)


def notes(record: BenchmarkRecord) -> list[str]:
    """Explain rows and cells without a time or with a scaled one: each reason with its lengths.

    Says, too, which rows are of an earlier attempt.
    """
    lengths: dict[tuple[str, str, str], list[int]] = {}
    for row, cell in record.cells:
        if cell.message is not None:
            lengths.setdefault((cell.label, cell.status, cell.message), []).append(row.n)
    why = [
        f"{label}: {status} at n = {', '.join(map(str, n))}: {message}"
        for (label, status, message), n in lengths.items()
    ]
    took_over = record.manifest.took_over
    earlier = ", ".join(str(row.n) for row in record.rows if took_over(row.measured))
    return [*record.left_out, *why, *([f"n = {earlier}: {TAKEN_OVER}"] if earlier else [])]
