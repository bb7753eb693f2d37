"""The rows of a group's records, averaged: a row for every method, over the seeds."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asap_exp.core.records.evaluation import OTHER_MAP, EvaluationRecord, Row, RowGroup
from asap_exp.core.records.latency import Latency
from asap_exp.report.groups import Group


@dataclass(frozen=True)
class Average:
    """The deviation is that of a sample; None for one value alone."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Quartiles(Average):
    """A median of one record alone, with its quartiles."""

    q1: float
    q3: float


@dataclass(frozen=True)
class AveragedRow:
    """A method that a record lacks is averaged over the others, and `n` says over how many."""

    key: str
    label: str
    group: RowGroup
    n: int
    accuracy: Average
    perplexity: Average | None
    val_perplexity: Average | None
    agreement: Average | None
    kl: Average | None
    l1_row_distance: Average | None
    column_error: Average | None
    layer_speedup: Average | None
    model_speedup: Average | None
    layer_ms: Average | None
    model_ms: Average | None
    peak_memory_mib: Average | None


Method = Callable[[EvaluationRecord, Row], tuple[str, str]]


def own_row(_: EvaluationRecord, row: Row) -> tuple[str, str]:
    return row.key, row.label


def averaged_rows(group: Group, by: Method = own_row) -> list[AveragedRow]:
    """In the order in which they come first.

    `by` gives the key of the method that a record's row belongs to, and its label.
    """
    by_key: dict[tuple[str, str], list[Row]] = {}
    for record in group.records:
        for row in record.rows:
            by_key.setdefault(by(record, row), []).append(row)
    return [averaged(key, label, rows) for (key, label), rows in by_key.items()]


def averaged(key: str, label: str, rows: Sequence[Row]) -> AveragedRow:
    accuracy = mean_std([row.accuracy for row in rows])
    assert accuracy is not None, "every row has one"
    return AveragedRow(
        key=key,
        label=label,
        group=rows[0].group,
        n=len(rows),
        accuracy=accuracy,
        perplexity=mean_std([row.perplexity for row in rows]),
        val_perplexity=mean_std([row.val_perplexity for row in rows]),
        agreement=mean_std([row.agreement for row in rows]),
        kl=mean_std([row.kl for row in rows]),
        l1_row_distance=mean_std([row.l1_row_distance for row in rows]),
        column_error=mean_std([row.column_error for row in rows]),
        layer_speedup=mean_std([row.layer_speedup for row in rows]),
        model_speedup=mean_std([row.model_speedup for row in rows]),
        layer_ms=mean_latency([row.layer_ms for row in rows]),
        model_ms=mean_latency([row.model_ms for row in rows]),
        peak_memory_mib=mean_std([row.peak_memory_mib for row in rows]),
    )


def main_rows(group: Group) -> list[AveragedRow]:
    """The averaged rows of the evaluation's own map and of what stands beside it."""
    return [row for row in averaged_rows(group) if not row.key.startswith(OTHER_MAP)]


def mean_latency(timings: Sequence[Latency | None]) -> Average | None:
    """Mean and deviation of the medians; of one record alone, its quartiles too."""
    known = [timing for timing in timings if timing is not None]
    if len(known) == 1:
        (only,) = known
        return Quartiles(only.median, None, only.q1, only.q3)
    return mean_std([timing.median for timing in known])


def mean_std(values: Sequence[float | None]) -> Average | None:
    """Of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Average(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)
