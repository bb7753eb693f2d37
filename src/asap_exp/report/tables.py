"""Table of one evaluation on a terminal: methods by speed, and which are beaten by which."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asap_exp.core.console import console, plain_table, say, show
from asap_exp.core.records.columns import Column, shown
from asap_exp.core.records.evaluation import OTHER_MAP, EvaluationRecord
from asap_exp.core.records.row import COLUMNS, Row
from asap_exp.report.averages import averaged_rows
from asap_exp.report.captions import caption
from asap_exp.report.groups import Group
from asap_exp.report.names import method_name
from asap_exp.report.pareto import compared, quality

LEAST_WANTED = (
    "l1_row_distance",
    "peak_memory_mib",
    "agreement",
    "column_error",
    "layer_ms",
    "layer_speedup",
    "kl",
)
"""Columns that a narrow terminal does without, in this order."""


def columns(record: EvaluationRecord) -> list[Column]:
    return [column for column in shown(COLUMNS, record.objective) if column.tables]


def cells(row: Row, record: EvaluationRecord) -> list[str]:
    numbers = (c.value(getattr(row, c.key)) for c in columns(record))
    return [method_name(row.key, row.label), *numbers]


def titles(record: EvaluationRecord) -> list[str | int]:
    return ["method", *(column.short for column in columns(record))]


@dataclass(frozen=True)
class Line:
    """Row of the table; `number` is None if it is compared with no other."""

    row: Row
    number: int | None = None
    beaten_by: int | None = None


def lines(record: EvaluationRecord) -> list[Line]:
    """Return the compared rows, fastest first, then the others in the order of the record."""
    group = Group(record.run, [record])
    points = compared(averaged_rows(group), quality(group))
    rows = {row.key: row for row in record.rows}
    numbers = {point.key: number for number, point in enumerate(points, start=1)}
    return [
        *(Line(rows[p.key], numbers[p.key], numbers.get(p.dominated_by or "")) for p in points),
        *(Line(row) for row in record.rows if row.key not in numbers),
    ]


def print_evaluation(record: EvaluationRecord) -> None:
    target = console()
    chosen = columns(record)
    left_out: list[Column] = []
    for key in LEAST_WANTED:
        if fits(evaluation_table(record, chosen, left_out), target):
            break
        left_out += [column for column in chosen if column.key == key]
        chosen = [column for column in chosen if column.key != key]
    show(evaluation_table(record, chosen, left_out))


def fits(table: Table, target: Console) -> bool:
    """Return True if no cell is cut; a measurement is itself cut to the width of its console."""
    return Console(width=10_000).measure(table).minimum <= target.width


def evaluation_table(
    record: EvaluationRecord, chosen: Sequence[Column], left_out: Sequence[Column]
) -> Table:
    """Make the table with the `chosen` columns; its caption names those that were left out."""
    words = [caption(record), "A method is beaten by one that is no slower and no worse."]
    if left_out:
        hidden = ", ".join(column.title for column in left_out)
        words.append(f"Left out, for the table to be narrow enough: {hidden}.")
    table = plain_table(escape(record.run), escape(" ".join(words)))
    found = lines(record)
    names = [method_name(line.row.key, line.row.label) for line in found]
    # The long names of further maps are wrapped; no other is.
    ours = [n for n, line in zip(names, found, strict=True) if not is_other_map(line.row)]
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("method", min_width=max(map(len, ours)), overflow="fold")
    for column in chosen:
        table.add_column(column.heading, justify="right", no_wrap=True)
    table.add_column("beaten\nby", justify="right", no_wrap=True)
    best = best_values(record, chosen)
    for name, line, after in zip(names, found, [*found[1:], None], strict=True):
        numbers = [
            f"[bold]{text}[/bold]" if best.get(column.key) == text else text
            for column in chosen
            for text in [column.value(getattr(line.row, column.key))]
        ]
        ends = after is not None and line.number is not None and after.number is None
        table.add_row(
            str(line.number or ""),
            escape(name),
            *numbers,
            str(line.beaten_by or ""),
            style="dim" if line.beaten_by else None,
            end_section=ends,
        )
    return table


def is_other_map(row: Row) -> bool:
    return row.key.startswith(OTHER_MAP)


def best_values(record: EvaluationRecord, chosen: Sequence[Column]) -> dict[str, str]:
    """Return the best quality and the shortest times among the methods, as written."""
    group = Group(record.run, [record])
    rows = [line.row for line in lines(record) if line.number]
    found = {}
    for column in chosen:
        if column.key == quality(group).key or column.latency:
            values = [x for row in rows if (x := getattr(row, column.key)) is not None]
            median = [x.median if column.latency else x for x in values]
            if median:
                least = column.latency or column.lower_is_better
                found[column.key] = column.value(min(median) if least else max(median))
    return found


def print_drift(ratios: dict[str, float]) -> None:
    """Print one ratio per layer, about 1 if the test samples resemble those of the calibration."""
    words = ", ".join(f"{path} {ratio:.3g}" for path, ratio in ratios.items())
    say(f"Column error on the test samples over that at calibration: {words}")
