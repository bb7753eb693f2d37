"""What the plans of a group's whole models do, averaged over its records; a table of it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asap_exp.core.records.behaviour import RowBehaviour
from asap_exp.core.records.columns import Average, Column
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import COLUMN, Row, RowGroup
from asap_exp.report.groups import Group
from asap_exp.report.names import method_name

TITLE = "What the plans do"
MEANING = (
    "Each model as it runs, at the temperature that it was trained with: plans and tokens are its "
    "own, those of a compiled map after its own layers before. A column sum is that of a plan "
    "scaled to a mass of one per token (1 is doubly stochastic): the largest of each sample and "
    "head, averaged over both and over layers, and the largest of all. Column error and entropy "
    "are means over layers, relative entropy is over that of a uniform row. Effective rank is that "
    "of the tokens after the last block (in brackets: before the first). A drop is what a "
    "corruption of that severity costs on the same images, in points of accuracy."
)


MEASURES: dict[str, Callable[[Sequence[float]], float]] = {
    "largest_column": statistics.fmean,
    "largest_column_of_all": max,
    "column_error": statistics.fmean,
    "entropy": statistics.fmean,
    "relative_entropy": statistics.fmean,
}
"""Measures of `LayerBehaviour`, and what becomes of those of all layers."""
COLUMNS = {
    "largest_column": Column("largest column sum", "", 2),
    "largest_column_of_all": Column("largest of all", "", 1),
    "column_error": Column("column error", "", 4),
    "entropy": Column("entropy, nats", "", 2),
    "relative_entropy": Column("relative entropy", "", 3),
}
"""Columns of the table, by name of the measure; over all layers."""
RANK = Column("effective rank", "", 1)
POINTS = Column("drop", "", 1)


@dataclass(frozen=True)
class Drop:
    """Accuracy that a corruption costs."""

    name: str
    severity: int
    points: Average
    """In percentage points."""
    accuracy: Average
    """As a share, of the corrupted images."""


@dataclass(frozen=True)
class AveragedBehaviour:
    """Behaviour of one method over the records, and over maps that share a point, that have it."""

    key: str
    name: str
    group: RowGroup
    accuracy: Average
    layers: dict[str, list[Average]]
    """By name of a measure of `LayerBehaviour`, a value per layer."""
    means: dict[str, Average]
    """The same of all layers of a model, by `MEASURES`."""
    ranks: list[Average]
    drops: list[Drop]

    @property
    def compiled(self) -> bool:
        """True if it is the teacher with other layers, and was not trained by itself."""
        return self.group != "teacher" and not self.key.endswith("_trained")


Found = tuple[RowBehaviour, Row]


def is_measured(group: Group) -> bool:
    return any(record.behaviour is not None for record in group.records)


def samples_of(group: Group) -> int:
    """Return the number of samples that plans were measured on."""
    return next(r.behaviour.samples for r in group.records if r.behaviour is not None)


def behaviours(group: Group) -> list[AveragedBehaviour]:
    """Return the behaviour of every whole model of a group, in order of first appearance."""
    found: dict[tuple[str, str], list[Found]] = {}
    for record in group.records:
        rows = {row.key: row for row in record.rows}
        for each in record.behaviour.rows if record.behaviour is not None else []:
            row = rows[each.key]
            found.setdefault(method(record, row), []).append((each, row))
    return [averaged(key, name, each) for (key, name), each in found.items()]


def method(record: EvaluationRecord, row: Row) -> tuple[str, str]:
    """Return key and name of a row's method; maps that differ in their seed alone are one."""
    point = record.maps.get(row.key)
    key, label = (row.key, row.label) if point is None else (point.key, point.label)
    return key, method_name(key, label)


def averaged(key: str, name: str, found: Sequence[Found]) -> AveragedBehaviour:
    """Return the means over models of one method; all have the same layers and corruptions."""
    (first, row), each = found[0], [behaviour for behaviour, _ in found]
    accuracies = [row.accuracy for _, row in found]
    layers = {
        measure: [mean_of([getattr(x.layers[n], measure) for x in each]) for n in range(depth)]
        for depth in [len(first.layers)]
        for measure in MEASURES
    }
    means = {
        measure: mean_of([over([getattr(layer, measure) for layer in x.layers]) for x in each])
        for measure, over in MEASURES.items()
    }
    ranks = [mean_of([x.ranks[n] for x in each]) for n in range(len(first.ranks))]
    drops = []
    for n, change in enumerate(first.corrupted):
        left = [x.corrupted[n].accuracy for x in each]
        lost = [100 * (a - b) for a, b in zip(accuracies, left, strict=True)]
        drops.append(Drop(change.name, change.severity, mean_of(lost), mean_of(left)))
    return AveragedBehaviour(key, name, row.group, mean_of(accuracies), layers, means, ranks, drops)


def mean_of(values: Sequence[float]) -> Average:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Average(statistics.fmean(values), std)


def table(group: Group) -> tuple[list[str], list[list[str]]]:
    """Return titles and a line of cells per whole model."""
    found = behaviours(group)
    titles = ["method", *(column.title for column in COLUMNS.values()), "effective rank"]
    drops = found[0].drops
    if drops:
        titles += ["accuracy %", *(f"{drop.name} {drop.severity}: drop" for drop in drops)]
    return titles, [cells(each) for each in found]


def cells(found: AveragedBehaviour) -> list[str]:
    line = [found.name, *(column.write(found.means[key]) for key, column in COLUMNS.items())]
    line.append(f"{RANK.write(found.ranks[-1])} ({RANK.write(Average(found.ranks[0].mean))})")
    if found.drops:
        line.append(COLUMN["accuracy"].write(found.accuracy))
    return line + [POINTS.write(drop.points) for drop in found.drops]
