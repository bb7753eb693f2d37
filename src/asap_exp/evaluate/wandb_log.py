"""The evaluation on the tracker: table, summary numbers and figures."""

from typing import Any

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group
from asap_exp.report.tables import cells, titles

SUMMARY = ("accuracy", "perplexity", "agreement", "layer_speedup", "model_speedup")


def log_evaluation(tracker: Any, record: EvaluationRecord) -> None:
    import wandb

    numbers = {
        f"{row.key}/{name}": getattr(row, name)
        for row in record.rows
        for name in SUMMARY
        if getattr(row, name) is not None
    }
    figures = group_figures(Group(record.run, [record]))
    tracker.log(
        {
            "evaluation": wandb.Table(titles(record), [cells(row, record) for row in record.rows]),
            **{f"figures/{name}": wandb.Image(figure) for name, figure in figures.items()},
            **numbers,
        }
    )
