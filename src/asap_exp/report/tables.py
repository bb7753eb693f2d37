"""Table of one evaluation on a terminal."""

from rich.markup import escape
from rich.table import Table

from asap_exp.core.console import say, show
from asap_exp.core.records.columns import Column, shown
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import COLUMNS, Row
from asap_exp.report.captions import caption


def columns(record: EvaluationRecord) -> list[Column]:
    return [column for column in shown(COLUMNS, record.objective) if column.tables]


def cells(row: Row, record: EvaluationRecord) -> list[str]:
    return [row.label, *(c.value(getattr(row, c.key)) for c in columns(record))]


def titles(record: EvaluationRecord) -> list[str | int]:
    return ["method", *(column.short for column in columns(record))]


def print_evaluation(record: EvaluationRecord) -> None:
    table = Table(title=escape(record.run), caption=escape(caption(record)))
    for title in titles(record):
        name = title == "method"
        table.add_column(str(title), justify="left" if name else "right", no_wrap=not name)
    previous = None
    for row in record.rows:
        if previous not in (None, row.group):
            table.add_section()
        previous = row.group
        table.add_row(*map(escape, cells(row, record)))
    show(table)


def print_drift(ratios: dict[str, float]) -> None:
    """Print one ratio per layer, about 1 if the test samples resemble those of the calibration."""
    words = ", ".join(f"{path} {ratio:.3g}" for path, ratio in ratios.items())
    say(f"Column error on the test samples over that at calibration: {words}")
