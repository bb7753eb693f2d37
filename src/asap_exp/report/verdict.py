"""The result of a group in a few sentences: what ASAP costs and gains, and its best rival."""

import math
from collections.abc import Iterable, Sequence

from asap_exp.core.records.columns import Column
from asap_exp.report.averages import AveragedRow
from asap_exp.report.captions import group_title
from asap_exp.report.groups import Group
from asap_exp.report.headline import compared_rows, headline
from asap_exp.report.pareto import goodness, no_worse, quality

LEAST = 0.5
"""Points of accuracy below which no method is called better, however large the test set is."""


def verdict(group: Group) -> list[str]:
    """Say what the compiled model loses and gains, which truncation rivals it, and which to use.

    The rival is the best truncation that is no slower than ASAP, or if none is as fast, the
    fastest one. No method is called better for a difference that may be chance. Raises ValueError
    if the models were not timed.
    """
    found, column = headline(group), quality(group)
    if found.asap["model_ms"] is None:
        raise ValueError(f"the models of {group.slug} were not timed")
    rows = truncations(compared_rows(group).values())
    rival = honest_rival(rows, found.asap, column)
    doubt = chance(group, found.asap, column)
    tokens = group.first.training.tokens
    where = f"{'Here' if tokens is None else f'At {tokens} tokens'}, on this machine,"
    name = found.name[0].upper() + found.name[1:]
    short = found.name if found.is_map else "this"
    lines = [
        f"{name} runs the model {speed(found.asap, found.teacher)} and has "
        f"{result(found.asap, column)}; its teacher has {result(found.teacher, column)}."
    ]
    if rival is None:
        return lines
    lines.append(
        f"The truncation to compare it with is {rival.name}: {speed(rival, found.teacher)}, with "
        f"{result(rival, column)}, and it needs no calibration."
    )
    if no_worse(rival, found.asap, column):
        return [*lines, f"{where} the truncation is the better choice.", *doubt]
    if rival.mean("model_ms") > found.asap.mean("model_ms"):
        return [*lines, f"{where} no truncation is as fast as {short}.", *doubt]
    ahead = 100 * (goodness(found.asap, column) - goodness(rival, column))
    if column.title.endswith(" %") and ahead < noise(group, found.asap, column):
        use = (
            f"{short} is slower than it, and the {ahead:.1f} points between them may be chance: "
            "the truncation is the better choice."
        )
        return [*lines, f"{where} {use}", *doubt]
    as_good = as_good_truncation(rows, found.asap, column)
    if as_good is None:
        other = "no truncation that was measured is as good"
    else:
        other = (
            f"at least as good is {as_good.name}: {speed(as_good, found.teacher)}, with "
            f"{result(as_good, column)}"
        )
    return [*lines, f"{where} {short} is slower than it, and better; {other}.", *doubt]


def chance(group: Group, asap: AveragedRow, column: Column) -> list[str]:
    """Say which differences of accuracy may be chance, if the test set is small."""
    if not column.title.endswith(" %") or noise(group, asap, column) < 1:
        return []
    return [
        f"With {group.first.test.rows} test samples, differences below "
        f"{noise(group, asap, column):.1f} points may be chance."
    ]


def noise(group: Group, asap: AveragedRow, column: Column) -> float:
    """Return the points of accuracy that may be chance: two deviations, and at least `LEAST`."""
    share, rows = asap.mean(column.key), group.first.test.rows * len(group.records)
    return max(200 * math.sqrt(share * (1 - share) / rows), LEAST)


def truncations(rows: Iterable[AveragedRow]) -> list[AveragedRow]:
    """Return the timed truncations, plain or relaxed."""
    return [row for row in rows if row.group in ("truncated", "relaxed") and row["model_ms"]]


def honest_rival(
    rows: Sequence[AveragedRow], asap: AveragedRow, column: Column
) -> AveragedRow | None:
    """Return the best truncation that is as fast as ASAP, else the fastest."""
    as_fast = [row for row in rows if row.mean("model_ms") <= asap.mean("model_ms")]
    if as_fast:
        return max(as_fast, key=lambda row: (goodness(row, column), -row.mean("model_ms")))
    return min(rows, key=lambda row: row.mean("model_ms"), default=None)


def as_good_truncation(
    rows: Sequence[AveragedRow], asap: AveragedRow, column: Column
) -> AveragedRow | None:
    """Return the fastest truncation that is as good as ASAP, or None."""
    as_good = [row for row in rows if goodness(row, column) >= goodness(asap, column)]
    return min(as_good, key=lambda row: row.mean("model_ms"), default=None)


def where_it_changes(groups: Iterable[Group]) -> list[str]:
    """Say, for each group in order of length, what ASAP has and the best method as fast has."""
    lines = []
    for group in sorted(groups, key=lambda group: group.first.training.tokens or 0):
        found, column = headline(group), quality(group)
        rival = "nothing else is as fast"
        if found.rival is not None:
            rival = f"the best other as fast {result(found.rival, column)}"
        lines.append(
            f"{group_title(group)}: {speed(found.asap, found.teacher)}, "
            f"{result(found.asap, column)}; {rival}"
        )
    return lines


def speed(row: AveragedRow, teacher: AveragedRow) -> str:
    return f"{teacher.mean('model_ms') / row.mean('model_ms'):.2f}x as fast"


def result(row: AveragedRow, column: Column) -> str:
    """Write the quality with its name: "96.30 % accuracy", "perplexity 11.97"."""
    number = column.number(row.mean(column.key))
    name = column.title.removesuffix(" %")
    return f"{number} % {name}" if column.title.endswith(" %") else f"{name} {number}"
