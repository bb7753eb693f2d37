"""Rows of a group's records, averaged over the seeds: one row per method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from asap_exp.core.records.columns import Average, Column
from asap_exp.core.records.evaluation import OTHER_MAP, EvaluationRecord
from asap_exp.core.records.row import COLUMNS, Row, RowGroup
from asap_exp.report.csv_table import measures
from asap_exp.report.groups import Group
from asap_exp.report.names import method_name


@dataclass(frozen=True)
class AveragedRow:
    """Method, the number `n` of records that have it, and the average in each column.

    `row["accuracy"]` is None if no record has a number there.
    """

    key: str
    label: str
    group: RowGroup
    n: int
    averages: Mapping[str, Average]

    @property
    def name(self) -> str:
        """The name of the method in tables and figures."""
        return method_name(self.key, self.label)

    def __getitem__(self, key: str) -> Average | None:
        return self.averages.get(key)

    def mean(self, key: str) -> float:
        """Return the mean of a number that was measured."""
        return self.averages[key].mean


Stats = Mapping[tuple[str, str], float]
"""Mean, std and count of one method, by name of the number and of the statistic."""

Method = Callable[[EvaluationRecord, Row], tuple[str, str]]


def own_row(_: EvaluationRecord, row: Row) -> tuple[str, str]:
    return row.key, row.label


def averaged_rows(group: Group, by: Method = own_row) -> list[AveragedRow]:
    """Return the averaged methods of a group, in order of first appearance.

    `by` gives the key and the label of the method that a record's row belongs to. Several rows of
    a method in one record, which are maps of one teacher, count as one seed beside other records.
    """
    rows = [(by(record, row), row) for record in group.records for row in record.rows]
    records = [place for place, record in enumerate(group.records) for _ in record.rows]
    frame = pd.DataFrame([measures(row) for _, row in rows], dtype=float)
    firsts: dict[tuple[str, str], int] = {}
    methods = [firsts.setdefault(method, place) for place, (method, _) in enumerate(rows)]
    if len(group.records) > 1:
        frame = frame.groupby([methods, records], sort=False).mean()
        methods = list(frame.index.get_level_values(0))
    by_method = frame.groupby(methods, sort=False).agg(["mean", "std", "count"]).to_dict("index")
    return [
        AveragedRow(key, label, rows[place][1].group, methods.count(place), averages(stats))
        for ((key, label), place), stats in zip(firsts.items(), by_method.values(), strict=True)
    ]


def averages(stats: Stats) -> dict[str, Average]:
    """Return the average in each column that has measured values."""
    found = {column.key: average(stats, column) for column in COLUMNS}
    return {key: each for key, each in found.items() if each is not None}


def average(stats: Stats, column: Column) -> Average | None:
    name = f"{column.key}_median" if column.latency else column.key
    mean, std, count = (stats[name, what] for what in ("mean", "std", "count"))
    if not count:
        return None
    if count > 1 or not column.latency:
        return Average(mean, std if count > 1 else None)
    low, high = (stats[f"{column.key}_{part}", "mean"] for part in ("q1", "q3"))
    return Average(mean, quartiles=(low, high))


def main_rows(group: Group) -> list[AveragedRow]:
    """Return the averaged rows of the evaluation's own map and comparisons, not of other maps."""
    return [row for row in averaged_rows(group) if not row.key.startswith(OTHER_MAP)]
