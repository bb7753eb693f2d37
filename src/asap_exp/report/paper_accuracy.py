"""The accuracy table of the paper's page: a row per method, a column per task, no cell untold."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from asap_exp.core.records.columns import Average, Column
from asap_exp.report.groups import Group
from asap_exp.report.names import LINEAR
from asap_exp.report.paper_columns import task_columns, task_of
from asap_exp.report.paper_comparison import Comparison, compare
from asap_exp.report.paper_maps import measured
from asap_exp.report.paper_tasks import (
    ASAP,
    METHODS,
    PUBLISHED,
    SINKHORN,
    TRAINED,
    PaperTask,
    rows_of,
)
from asap_exp.report.pareto import quality


@dataclass(frozen=True)
class Cell:
    """Number of a method on a task: mean and deviation over `seeds`, or the reason for none.

    Of one seed they are over `maps` that differ in the seed of their calibration, if there are any.
    """

    text: str
    mean: float | None = None
    std: float | None = None
    seeds: int = 0
    maps: int = 1
    reason: str = ""
    best: bool = False
    published: bool = False


Table = Mapping[str, Mapping[str, Cell]]
"""Cells by method and by title of the task."""


def accuracy_table(groups: Mapping[str, Group]) -> dict[str, dict[str, Cell]]:
    """Return the table of the groups that stand for the tasks, by their titles."""
    names = dict.fromkeys(METHODS)
    for group in groups.values():
        for record in group.records:
            names |= dict.fromkeys(rows_of(record))
    best = {title: best_of(group, [*names]) for title, group in groups.items()}
    columns = task_columns(groups)
    ours = {
        name: {
            task.title: cell(groups.get(task.title), name, task, best.get(task.title) == name)
            for task in columns
        }
        for name in names
    }
    for row in ours.values():
        for title in shorter_titles(columns):
            point_to_shorter(row, task_of(title).title, title)
    return ours | {name: published_row(name, columns) for name in PUBLISHED}


def shorter_titles(columns: Iterable[PaperTask]) -> list[str]:
    """Return the titles of the columns of shorter recipes."""
    return [task.title for task in columns if task_of(task.title) != task]


def point_to_shorter(row: dict[str, Cell], first: str, shorter: str) -> None:
    """Say in an empty cell that its number is in the column of the shorter recipe."""
    if row[first].mean is None and row[shorter].mean is not None:
        row[first] = replace(row[first], reason=f"trained for fewer epochs: see {shorter}")


def cell(group: Group | None, name: str, task: PaperTask, best: bool) -> Cell:
    """Return the cell of a method, averaged over the records that have it."""
    if group is None:
        return Cell("", reason="no record of this task")
    metric = quality(group)
    by_seed = values_of(group, name)
    if not by_seed:
        return Cell("", reason=reason(group, name, task))
    values = [value for each in by_seed for value in each]
    mean = statistics.mean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    seeds, maps = len(by_seed), len(by_seed[0])
    return Cell(written(metric, mean, std, seeds, maps), mean, std, seeds, maps, best=best)


def values_of(group: Group, name: str) -> list[list[float]]:
    """Return the measured numbers of a method by training seed: several of its maps, if one."""
    key = quality(group).key
    rows = [[getattr(each.row, key) for each in maps] for maps in measured(group, name)]
    found = [[value for value in values if value is not None] for values in rows]
    return [values for values in found if values]


def written(metric: Column, mean: float, std: float | None, seeds: int, maps: int) -> str:
    """Write mean, deviation and number of seeds: "91.60 ± 0.12 (3)", "91.00 ± 0.02 (1; 3 maps)"."""
    return f"{metric.write(Average(mean, std))} ({seeds}{f'; {maps} maps' if maps > 1 else ''})"


def reason(group: Group, name: str, task: PaperTask) -> str:
    """Say why a method has no number on a task that has a record."""
    record = group.first
    if name == LINEAR:
        images, tokens = task.data in ("cifar100", "catsdogs"), record.trained_for.of_tokens
        return "of texts with classes alone" if images or tokens else "not measured"
    if name == ASAP and record.artifact.without_asap:
        return "the record is of a budget that chose no ASAP"
    if name == ASAP and not record.artifact.calibration.fitted:
        return "the record is of coarse duals"
    if name in TRAINED or name.endswith("same recipe"):
        return "not trained by this recipe"
    return "not measured"


def published_row(name: str, columns: Iterable[PaperTask]) -> dict[str, Cell]:
    """Return the figures that others published, which are of other settings: once per task."""
    figures, shorter = PUBLISHED[name], shorter_titles(columns)
    reasons = {title: f"see {task_of(title).title}" for title in shorter}
    return {
        task.title: Cell(f"{figures[task.title]:.2f}", figures[task.title] / 100, published=True)
        if task.title in figures
        else Cell("", reason=reasons.get(task.title, "not published"))
        for task in columns
    }


def best_of(group: Group, names: list[str]) -> str | None:
    """Return the best method if a paired test tells it from each of the others, else None."""
    metric, rivals = quality(group), compared_names(group, names)
    if len(rivals) < 2:
        return None
    sign = -1 if metric.lower_is_better else 1
    first, *others = sorted(rivals, key=lambda name: -sign * rivals[name])
    tests = [compare(group, first, other) for other in others]
    told = [test is not None and test.significant and sign * test.difference > 0 for test in tests]
    return first if all(told) else None


def compared_names(group: Group, names: list[str]) -> dict[str, float]:
    """Return the mean of each method that was measured."""
    found = {}
    for name in names:
        if values := values_of(group, name):
            found[name] = statistics.mean(value for each in values for value in each)
    return found


def comparisons(group: Group, names: list[str]) -> dict[str, Comparison]:
    """Return the comparison of the Sinkhorn teacher with each other method that was measured."""
    found = {name: compare(group, SINKHORN, name) for name in names if name != SINKHORN}
    return {name: test for name, test in found.items() if test is not None}
