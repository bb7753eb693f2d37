"""Benchmark records: written into run directories, copied from there into `results/records/`."""

from pathlib import Path

from asap_exp.config import PathsConfig
from asap_exp.errors import UserError
from asap_exp.evaluation.records import Record, records_in
from asap_exp.files import read_json, write_json

FORMAT = 2


def folder_of(paths: PathsConfig, name: str) -> Path:
    """RESULTS/runs/benchmark/NAME/ holds manifest.json and, once finished, metrics.json."""
    return paths.runs / "benchmark" / name


def gather(paths: PathsConfig, folder: Path) -> list[Path]:
    """Copies the record of every finished benchmark into `folder`; returns what it copied."""
    kept = []
    for source in sorted(folder_of(paths, "*").parent.glob("*/metrics.json")):
        target = folder / f"{source.parent.name}.json"
        write_json(target, read_json(source))
        kept.append(target)
    return kept


def load_records(folder: Path) -> list[Record]:
    """In order of name; UserError for a foreign file, or one without a finished manifest."""
    records = records_in(folder, "benchmark", FORMAT)
    for file, record in records.items():
        if record.get("manifest", {}).get("status") != "finished":
            raise UserError(
                f"{file} has no manifest of a finished run: a number without one is not reported"
            )
    return list(records.values())


def columns(record: Record) -> dict[str, str]:
    """The label of every method, in the order of the columns."""
    return {cell["method"]: cell["label"] for cell in record["rows"][0]["cells"]}


def cells(record: Record) -> list[tuple[Record, Record]]:
    """Every (row, cell)."""
    return [(row, cell) for row in record["rows"] for cell in row["cells"]]


def notes(record: Record) -> list[str]:
    """Why rows and cells are without a time or with a scaled one, each reason with its lengths."""
    lengths: dict[tuple[str, str, str], list[int]] = {}
    for row, cell in cells(record):
        if cell["message"] is not None:
            key = (cell["label"], cell["status"], str(cell["message"]))
            lengths.setdefault(key, []).append(row["n"])
    why = [
        f"{label}: {status} at n = {', '.join(map(str, n))}: {message}"
        for (label, status, message), n in lengths.items()
    ]
    return [*record["left_out"], *why]
