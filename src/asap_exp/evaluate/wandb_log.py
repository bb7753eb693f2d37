"""Evaluation on wandb: what it measured, its table, summary numbers and figures."""

from typing import Any

from asap_exp.core.lineage import data_product, map_product, reads, teacher_product
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import COLUMNS
from asap_exp.evaluate.resolve import Subject
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group
from asap_exp.report.tables import cells, titles


def log_inputs(tracker: Any, subject: Subject) -> None:
    """Mark what is measured as used: test data, teacher, maps and the baselines' models."""
    if tracker is None:
        return
    run, maps = subject.run, [subject.artifact, *subject.others]
    baselines = [*subject.baselines.values(), *subject.more_baselines, *subject.rivals.values()]
    reads(
        tracker,
        data_product(run.config.data.name, "test", subject.data.identity),
        teacher_product(run),
        *(map_product(run, each.identity) for each in maps),
        *(teacher_product(other) for other in baselines if other is not None),
    )


def numbers(record: EvaluationRecord) -> dict[str, float]:
    """Return the main numbers of each method, as METHOD/NUMBER."""
    return {
        f"{row.key}/{column.key}": value
        for row in record.rows
        for column in COLUMNS
        if column.wandb and (value := getattr(row, column.key)) is not None
    }


def log_evaluation(tracker: Any, record: EvaluationRecord) -> None:
    """Log the table, the figures and the main numbers of an evaluation."""
    import wandb

    figures = group_figures(Group(record.run, [record]))
    tracker.log(
        {
            "evaluation": wandb.Table(titles(record), [cells(row, record) for row in record.rows]),
            **{f"figures/{name}": wandb.Image(figure) for name, figure in figures.items()},
            **numbers(record),
        }
    )
