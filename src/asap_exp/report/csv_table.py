"""`tables.csv`, from the records alone: every row of every record, unrounded."""

import csv
import io
from typing import Any

from asap_exp.core.escaping import spreadsheet
from asap_exp.core.records.evaluation import EvaluationRecord, Row
from asap_exp.core.records.latency import Latency
from asap_exp.report.groups import Group


def tables_csv(groups: list[Group]) -> str:
    flat = [
        flat_row(group, record, row)
        for group in groups
        for record in group.records
        for row in record.rows
    ]
    return csv_text(flat)


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Rows under a line of all their keys; nothing where there is no row."""
    out = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    if rows:
        writer = csv.DictWriter(out, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: spreadsheet(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


MEASURES = (
    "accuracy",
    "agreement",
    "kl",
    "loss",
    "perplexity",
    "val_perplexity",
    "l1_row_distance",
    "row_error",
    "column_error",
    "entropy",
    "largest_column_error",
    "gate_error",
    "layer_speedup",
    "model_speedup",
    "peak_memory_mib",
)
NOT_OF_ALL = ("loss", "perplexity", "val_perplexity")
"""A column only where some record has it."""


def flat_row(group: Group, record: EvaluationRecord, row: Row) -> dict[str, Any]:
    measured = {name: getattr(row, name) for name in MEASURES}
    return {
        "group": group.slug,
        "run": record.run,
        "data": record.data,
        "qk_norm": record.qk_norm,
        "seed": record.seed,
        "device": record.device,
        "test_rows": record.test.rows,
        "method_group": row.group,
        "key": row.key,
        "label": row.label,
        **{k: v for k, v in measured.items() if v is not None or k not in NOT_OF_ALL},
        **quartiles("layer_ms", row.layer_ms),
        **quartiles("model_ms", row.model_ms),
    }


def quartiles(name: str, x: Latency | None) -> dict[str, float | None]:
    parts = ("median", "q1", "q3")
    return {f"{name}_{part}": None if x is None else getattr(x, part) for part in parts}
