"""Evaluation on wandb: table, summary numbers and figures."""

from typing import Any

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import COLUMNS
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group
from asap_exp.report.tables import cells, titles


def log_evaluation(tracker: Any, record: EvaluationRecord) -> None:
    import wandb

    numbers = {
        f"{row.key}/{column.key}": value
        for row in record.rows
        for column in COLUMNS
        if column.wandb and (value := getattr(row, column.key)) is not None
    }
    figures = group_figures(Group(record.run, [record]))
    tracker.log(
        {
            "evaluation": wandb.Table(titles(record), [cells(row, record) for row in record.rows]),
            **{f"figures/{name}": wandb.Image(figure) for name, figure in figures.items()},
            **numbers,
        }
    )
