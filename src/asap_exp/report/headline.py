"""The result of a group in one line: its teacher, ASAP, and the best method that is as fast."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from asap_exp.core.records.evaluation import OTHER_MAP
from asap_exp.core.records.words import other_label, settings_of_label
from asap_exp.report.averages import AveragedRow, main_rows
from asap_exp.report.groups import Group
from asap_exp.report.names import CONTROL, NO_SLICES
from asap_exp.report.pareto import goodness, points, quality


@dataclass(frozen=True)
class Headline:
    """Rows of a group that are compared; `rival` is None if no other method is as fast as ASAP."""

    group: Group
    teacher: AveragedRow
    asap: AveragedRow
    rival: AveragedRow | None

    @property
    def seeds(self) -> str:
        """The number of trained models and, of a single one, how many maps are averaged."""
        models = len(self.group.records)
        if models == 1 and self.asap.n > 1:
            return f"1 ({self.asap.n} maps)"
        return str(models)

    @property
    def name(self) -> str:
        """The compiled map's method: "ASAP", or what the layers became instead."""
        return other_label(self.group.first.artifact) or "ASAP"

    @property
    def is_map(self) -> bool:
        """False for coarse duals without a fit, for another attention, and for a budget's choice
        without ASAP.
        """
        return other_label(self.group.first.artifact) is None

    @property
    def title_words(self) -> str:
        """The same for a title."""
        models, maps = len(self.group.records), self.asap.n
        words = f"{models} seed{'s' if models > 1 else ''}"
        return f"{words}, {maps} maps" if models == 1 and maps > 1 else words


def compiled_word(groups: Iterable[Group]) -> str:
    """Return the title of a column of compiled models: "ASAP" if all of them are that."""
    others = (other_label(group.first.artifact) for group in groups)
    return "ASAP" if all(other is None for other in others) else "compiled"


def headline(group: Group) -> Headline:
    """Compare ASAP with the best truncation or control of the same weights that is as fast.

    Of several models every number is the mean over the models. Of a single one, a map's number is
    the mean over the maps that differ from it in the seed of their calibration alone, if the
    evaluation measured them.
    """
    rows = compared_rows(group)
    asap = rows["asap"]
    rivals = [
        row
        for row in rows.values()
        if is_rival(row)
        and row["model_ms"] is not None
        and asap["model_ms"] is not None
        and row.mean("model_ms") <= asap.mean("model_ms")
    ]
    column = quality(group)
    # Of two that are as good, the faster one.
    rivals.sort(key=lambda row: row.mean("model_ms"))
    best = max(rivals, key=lambda row: goodness(row, column), default=None)
    return Headline(group, rows["teacher"], asap, best)


def is_rival(row: AveragedRow) -> bool:
    """Return True for other methods on the teacher's weights, coarse duals without a fit too."""
    coarse = row.group == "coarse" and row.key.startswith(OTHER_MAP)
    others = row.group in ("truncated", "relaxed", "control") or row.key == "softmax_swapped"
    return coarse or others


def compared_rows(group: Group) -> dict[str, AveragedRow]:
    """Return the rows by key, each method once, the group's own map and its control averaged."""
    main = {row.key: row for row in main_rows(group)}
    maps = group.first.maps
    if len(group.records) > 1 or not maps:
        return main
    averaged = {row.key: row for row in points(group)}
    own = {key: maps[key].key for key in main if key in maps and maps[key].key in averaged}
    others = {key: row for key, row in averaged.items() if key not in own.values()}
    means = {
        key: replace(main[key], n=averaged[point].n, averages=averaged[point].averages)
        for key, point in own.items()
    }
    return {**main, **others, **means}


def rival_words(row: AveragedRow) -> str:
    """Name a rival in a few words."""
    settings = settings_of_label(row.label)
    if settings is None:
        return row.name.removeprefix(CONTROL)
    updates = "" if settings.refine == "0" else f", {settings.updates}"
    return f"{NO_SLICES.removeprefix(CONTROL)}{updates}"
