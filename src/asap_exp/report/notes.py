"""Notes next to a table: published figures, needless attention, plans of uneven columns."""

from asap_exp.core.objectives import CLASSIFICATION
from asap_exp.core.records.row import COLUMN
from asap_exp.report.averages import averaged_rows, main_rows
from asap_exp.report.groups import Group
from asap_exp.report.names import ONE_LAYER

PUBLISHED = {
    "cifar100": "CIFAR-100: 64.95 (a third party's index; other recipe).",
    "agnews": "AG News: 90.12 (a third party's index; trained on other rows).",
    "dbpedia": "DBpedia: 98.27 (a third party's index; other rows, another split).",
    "yelp": "Yelp Review Full: 54.54 (a third party's index; other recipe).",
    "imdb": "IMDb: 87.34 (a third party's index; another split and recipe).",
}
"""Published accuracy of Sinkformers, by data set."""

COMPILED = ("asap", "coarse", "budget")
"""Groups of rows that stand in for the teacher's plans."""

NEEDLESS = (
    "Uniform attention in the teacher's place loses less than one point, so this task does not "
    "test attention."
)


UNFUSED = (
    "The controls without slices were timed without a fused kernel, which that version lacked: "
    "their times are not those of the present one."
)
SLOWER = 1.5
"""Time of a control's layer over that of its map from which it cannot have been fused."""


ALLOWED = 0.1
"""How much larger than its teacher's the column error of a doubly-stochastic method may be."""


def remarks(group: Group) -> list[str]:
    """Return notes on attention that is not needed, unfused controls, uneven columns, and on what
    others published.
    """
    found = [NEEDLESS] if attention_is_needless(group) else []
    found += [UNFUSED] if controls_are_unfused(group) else []
    found += uneven(group)
    record = group.first
    plain = record.trained_for is CLASSIFICATION and record.corruption is None
    if plain and record.data in PUBLISHED:
        found.append(f"Published Sinkformer on {PUBLISHED[record.data]}")
    return found


def uneven(group: Group) -> list[str]:
    """Return a note on compiled methods whose columns miss their sums by more than is allowed."""
    rows = {row.key: row for row in main_rows(group)}
    teacher = rows["teacher"]["column_error"]
    if teacher is None:
        return []
    beyond = [
        f"{row.name} {COLUMN['column_error'].number(error.mean)}"
        for row in rows.values()
        if row.group in COMPILED and not row.key.startswith(ONE_LAYER)
        if (error := row["column_error"]) is not None and error.mean > teacher.mean + ALLOWED
    ]
    if not beyond:
        return []
    return [
        f"Not doubly stochastic by the measure here, a column error of at most {ALLOWED} more than "
        f"the teacher's ({COLUMN['column_error'].number(teacher.mean)}): {', '.join(beyond)}."
    ]


def controls_are_unfused(group: Group) -> bool:
    """Return True if the control without slices ran in plain PyTorch, and its map fused.

    Records do not say so. But a control computes a part of what its map does, so that a fused one
    is no slower.
    """
    if group.first.latency.backend != "triton":
        return False
    times = {row.key: row["layer_ms"] for row in averaged_rows(group)}
    control, asap = times.get("control_query"), times.get("asap")
    return control is not None and asap is not None and control.mean > SLOWER * asap.mean


def attention_is_needless(group: Group) -> bool:
    """Return True if uniform attention in every layer costs a classifier less than one point."""
    accuracy = {row.key: row.mean("accuracy") for row in averaged_rows(group)}
    record, uniform = group.first, accuracy.get("control_uniform")
    classifier = record.trained_for is CLASSIFICATION
    if not classifier or not record.all_layers or uniform is None:
        return False
    return accuracy["teacher"] - uniform < 0.01
