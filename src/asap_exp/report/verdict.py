"""The result of a group in a few sentences: what ASAP costs and gains, and its best rival."""

from collections.abc import Iterable, Sequence

from asap_exp.core.records.columns import Column
from asap_exp.report.averages import AveragedRow
from asap_exp.report.captions import group_title
from asap_exp.report.groups import Group
from asap_exp.report.headline import compared_rows, headline
from asap_exp.report.pareto import goodness, no_worse, quality


def verdict(group: Group) -> list[str]:
    """Say what the compiled model loses and gains, which truncation rivals it, and which to use.

    The rival is the best truncation that is no slower than ASAP, or if none is as fast, the
    fastest one. Raises ValueError if the models were not timed.
    """
    found, column = headline(group), quality(group)
    if found.asap["model_ms"] is None:
        raise ValueError(f"the models of {group.slug} were not timed")
    rival = honest_rival(list(compared_rows(group).values()), found.asap, column)
    tokens = group.first.training.tokens
    where = f"{'Here' if tokens is None else f'At {tokens} tokens'}, on this machine,"
    lines = [
        f"ASAP runs the model {speed(found.asap, found.teacher)} and has "
        f"{result(found.asap, column)}; its teacher has {result(found.teacher, column)}."
    ]
    if rival is None:
        return lines
    lines.append(
        f"The truncation to compare it with is {rival.name}: {speed(rival, found.teacher)}, with "
        f"{result(rival, column)}, and it needs no calibration."
    )
    if no_worse(rival, found.asap, column):
        lines.append(f"{where} the truncation is the better choice.")
    elif rival.mean("model_ms") <= found.asap.mean("model_ms"):
        lines.append(f"{where} ASAP is slower and more accurate.")
    else:
        lines.append(f"{where} no truncation is as fast as ASAP.")
    return lines


def honest_rival(
    rows: Sequence[AveragedRow], asap: AveragedRow, column: Column
) -> AveragedRow | None:
    """Return the best truncation, plain or relaxed, that is as fast as ASAP, else the fastest."""
    truncations = [row for row in rows if row.group in ("truncated", "relaxed") and row["model_ms"]]
    as_fast = [row for row in truncations if row.mean("model_ms") <= asap.mean("model_ms")]
    if as_fast:
        return max(as_fast, key=lambda row: (goodness(row, column), -row.mean("model_ms")))
    return min(truncations, key=lambda row: row.mean("model_ms"), default=None)


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
