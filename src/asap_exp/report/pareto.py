"""Quality against latency of all methods measured on one teacher, and which are dominated.

Quality is accuracy, or perplexity of a masked language model. Maps that differ only in the seed of
their calibration are one point, with a deviation.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asap_exp.core.records.columns import Column
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import COLUMN, Row
from asap_exp.report.averages import AveragedRow, averaged_rows
from asap_exp.report.groups import Group


@dataclass(frozen=True)
class Point(AveragedRow):
    """Timed method, the key of the fastest method that dominates it, and a map that matches it.

    `matched` says, for a truncation, whether some map of ASAP is no slower and no worse.
    """

    dominated_by: str | None
    matched: bool | None


def has_maps(group: Group) -> bool:
    """Return True if all maps of the teacher were measured, not just one."""
    return any(record.maps for record in group.records)


def quality(group: Group) -> Column:
    """Return the column that judges a method."""
    return COLUMN[group.first.trained_for.metric]


def points(group: Group) -> list[Point]:
    """Return every timed method on the teacher's weights, maps of one recipe as one point."""
    return compared(averaged_rows(group, by=point_of), quality(group))


def compared(rows: Iterable[AveragedRow], column: Column) -> list[Point]:
    """Return the timed rows on the teacher's weights, fastest first, compared with one another."""
    rows = [
        row
        for row in rows
        if row["model_ms"] is not None
        and not row.key.startswith("asap_layer")
        and not row.key.endswith("_trained")
    ]
    rows.sort(key=lambda row: row.mean("model_ms"))
    maps = [row for row in rows if row.group == "asap"]
    return [
        Point(
            **vars(row),
            dominated_by=dominating(row, rows, column),
            matched=any(no_worse(other, row, column) for other in maps)
            if row.group in ("truncated", "relaxed")
            else None,
        )
        for row in rows
    ]


def point_of(record: EvaluationRecord, row: Row) -> tuple[str, str]:
    """Return key and label of the point that `row` is a measurement of."""
    found = record.maps.get(row.key, row)
    return found.key, found.label


def dominating(row: AveragedRow, rows: Sequence[AveragedRow], column: Column) -> str | None:
    """Return the first of `rows` that is no slower and no worse than `row`, and better in one."""
    for other in rows:
        if no_worse(other, row, column) and not no_worse(row, other, column):
            return other.key
    return None


def no_worse(row: AveragedRow, than: AveragedRow, column: Column) -> bool:
    """Return True if `row` is at least as good and at least as fast."""
    good, fast = goodness(row, column), row.mean("model_ms")
    return good >= goodness(than, column) and fast <= than.mean("model_ms")


def goodness(row: AveragedRow, column: Column) -> float:
    """Return the quality, signed so that more is better."""
    # A perplexity too large for a number is null in the record.
    value = -math.inf if row[column.key] is None else row.mean(column.key)
    return -abs(value) if column.lower_is_better else value
