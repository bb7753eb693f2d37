"""Accuracy against latency of everything measured on one teacher, and what is dominated there.

Of a masked language model perplexity stands in the place of accuracy: less of it is better. Maps
that differ in the seed of their calibration alone are one point, with a deviation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import Row
from asap_exp.report.averages import AveragedRow, averaged_rows
from asap_exp.report.groups import Group


@dataclass(frozen=True)
class Point(AveragedRow):
    """An averaged row that was timed, and the fastest method that dominates it, or None."""

    dominated_by: str | None


def has_maps(group: Group) -> bool:
    """Whether all the maps of the teacher were measured, not one alone."""
    return any(record.maps for record in group.records)


def points(group: Group) -> list[Point]:
    """Every timed method on the teacher's weights, from the fastest to the slowest."""
    rows = [
        row
        for row in averaged_rows(group, by=point_of)
        if row["model_ms"] is not None
        and not row.key.startswith("asap_layer")
        and not row.key.endswith("_trained")
    ]
    masked = group.first.is_masked
    rows.sort(key=lambda row: standing(row, masked=masked)[1])
    return [Point(**vars(row), dominated_by=dominating(row, rows, masked=masked)) for row in rows]


def point_of(record: EvaluationRecord, row: Row) -> tuple[str, str]:
    """Key and label of the point that `row` is a measurement of."""
    found = record.maps.get(row.key, row)
    return found.key, found.label


def dominating(row: AveragedRow, rows: Sequence[AveragedRow], *, masked: bool) -> str | None:
    """The first of `rows` that is at least as accurate and as fast as `row`, and better in one."""
    mine = standing(row, masked=masked)
    for other in rows:
        theirs = standing(other, masked=masked)
        if theirs != mine and theirs[0] >= mine[0] and theirs[1] <= mine[1]:
            return other.label
    return None


def standing(row: AveragedRow, *, masked: bool) -> tuple[float, float]:
    """Accuracy (if `masked`, minus the perplexity) and milliseconds of the whole model."""
    ms = row.mean("model_ms")
    if not masked:
        return row.mean("accuracy"), ms
    # A perplexity too large for a number is null in the record.
    return -math.inf if row["perplexity"] is None else -row.mean("perplexity"), ms


def verdict(group: Group) -> str:
    """Which truncations some map of ASAP is no slower and no less accurate than."""
    rows, masked = points(group), group.first.is_masked
    ahead, behind = beaten(rows, "truncated", masked=masked)
    no_worse = "of no higher perplexity" if masked else "no less accurate"
    sentence = (
        f"At n = {tokens_words(group.first)}, Sinkhorn with T' of {counts(ahead)} has a map of "
        f"ASAP beside it that is no slower and {no_worse}; with T' of {counts(behind)} it has none."
    )
    ahead, behind = beaten(rows, "relaxed", masked=masked)
    if ahead or behind:
        sentence += (
            f" With relaxed updates T' of {counts(ahead)} has one, T' of {counts(behind)} has none."
        )
    return sentence


def beaten(rows: list[Point], kind: str, *, masked: bool) -> tuple[list[int], list[int]]:
    """T' of the rows of this group that some map is no worse than in either, and of the others."""
    maps = [standing(row, masked=masked) for row in rows if row.group == "asap"]
    ahead: list[int] = []
    behind: list[int] = []
    for row in rows:
        if row.group == kind:
            accuracy, ms = standing(row, masked=masked)
            found = any(a >= accuracy and t <= ms for a, t in maps)
            (ahead if found else behind).append(int(row.key.removeprefix(f"{kind}_")))
    return ahead, behind


def tokens_words(record: EvaluationRecord) -> str:
    """How many tokens attention is over: as many in every image, at most so many in a text."""
    n = record.training.tokens
    return f"{record.training.data.max_length} tokens at most" if n is None else f"{n} tokens"


def counts(updates: list[int]) -> str:
    return ", ".join(map(str, sorted(updates))) or "none of those measured"
