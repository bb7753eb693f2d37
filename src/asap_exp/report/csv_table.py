"""`tables.csv`: every row of every record, unrounded."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from asap_exp.core.escaping import spreadsheet
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.latency import Latency
from asap_exp.core.records.row import COLUMNS, Row
from asap_exp.report.groups import Group


def tables_csv(groups: list[Group]) -> str:
    return csv_text(
        [
            flat_row(group, record, row)
            for group in groups
            for record in group.records
            for row in record.rows
        ]
    )


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as CSV below a header of their keys; empty if there are no rows."""
    if not rows:
        return ""
    shown = [{key: spreadsheet(value) for key, value in row.items()} for row in rows]
    # Use dtype object, since pandas turns integers in a column with empty cells into floats.
    return pd.DataFrame(shown, dtype=object).to_csv(index=False, lineterminator="\n")


def flat_row(group: Group, record: EvaluationRecord, row: Row) -> dict[str, Any]:
    return {
        "group": group.slug,
        "run": record.run,
        "data": record.data,
        "qk_norm": record.qk_norm,
        "seed": record.seed,
        "device": record.device,
        "test_rows": record.test.rows,
        "train_subset": record.trained_on.is_subset,
        "test_subset": not record.test.whole,
        "method_group": row.group,
        "key": row.key,
        "label": row.label,
        **measures(row),
    }


def measures(row: Row) -> dict[str, float | None]:
    """Return the number in each column; for a latency its median and quartiles."""
    found: dict[str, float | None] = {}
    for column in COLUMNS:
        value = getattr(row, column.key)
        found |= quartiles(column.key, value) if column.latency else {column.key: value}
    return found


def quartiles(name: str, x: Latency | None) -> dict[str, float | None]:
    parts = ("median", "q1", "q3")
    return {f"{name}_{part}": None if x is None else getattr(x, part) for part in parts}
