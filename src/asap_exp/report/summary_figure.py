"""First figure of the report: one data set at several lengths, time relative to the teachers."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from asap_exp.core.escaping import on_figure
from asap_exp.report.accuracy_figure import (
    FAMILIES,
    draw_group,
    family_of,
    label_updates,
    legend,
    quality_title,
    rows_of,
    visible,
)
from asap_exp.report.captions import group_title
from asap_exp.report.drawing import subplots
from asap_exp.report.groups import Group
from asap_exp.report.headline import headline
from asap_exp.report.pareto import has_maps

GAP = 22
"""Pixels between labelled truncations."""


def summary(groups: Sequence[Group]) -> Figure | None:
    """Draw a panel per length.

    Choose, among data sets whose maps were all measured, the one with the most lengths; return None
    if there is none.
    """
    chosen = lengths(groups)
    if not chosen:
        return None
    figure, grid = subplots(8, 4.2, ncols=len(chosen), squeeze=False)
    scales = [100 / headline(group).teacher.mean("model_ms") for group in chosen]
    for axes, group, scale in zip(grid.flat, chosen, scales, strict=True):
        draw_group(axes, group, scale=scale)
        found = headline(group)
        words = f"{found.name} {found.asap.mean('model_speedup'):.1f}x as fast as its teacher"
        axes.set_title(f"{length(group)}\n{on_figure(words)}", fontsize=9.5)
        axes.set_xlim(0, 110)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.tick_params(labelsize=9)
    record = chosen[0].first
    norm = f"{record.data_title} {'with' if record.qk_norm else 'without'} qk_norm"
    grid.flat[0].set_ylabel(f"{on_figure(norm)}\n{quality_title(chosen[0])}")
    words = "time of the whole model, % of the Sinkhorn teacher's (left is faster)"
    figure.supxlabel(f"{words}{not_measured(chosen)}", fontsize=10)
    legend(figure)
    for axes, group, scale in zip(grid.flat, chosen, scales, strict=True):
        label_updates(figure, axes, group, scale=scale, size=8, gap=GAP)
    return figure


def length(group: Group) -> str:
    """Return the number of tokens, or the group's title where lengths differ."""
    n = group.first.training.tokens
    return f"{n:,} tokens" if n else on_figure(group_title(group), 30)


def not_measured(groups: Sequence[Group]) -> str:
    """Return a line on methods that some panel shows and another lacks, or nothing."""
    shown = {family_of(row) for group in groups for row in visible(group)}
    measured = [{family_of(row) for row in rows_of(group)} for group in groups]
    found = []
    for kind in FAMILIES:
        without = [
            length(group)
            for group, kinds in zip(groups, measured, strict=True)
            if kind in shown - kinds
        ]
        if without:
            found.append(f"{FAMILIES[kind].name} (at {', '.join(without)})")
    words = on_figure(f"not measured: {'; '.join(found)}", 110)
    return f"\n{words}" if found else ""


def lengths(groups: Sequence[Group]) -> list[Group]:
    """Return the groups of one data set and norm whose maps were all measured, by length."""
    families: dict[tuple[str, bool, bool], list[Group]] = {}
    for group in groups:
        record = group.first
        usual = record.all_layers and record.corruption is None
        if has_maps(group) and usual and headline(group).asap["model_speedup"] is not None:
            family = record.data_title, record.qk_norm, group.published
            families.setdefault(family, []).append(group)
    best = max(families.values(), key=len, default=[])
    return sorted(best, key=lambda group: group.first.training.tokens or 0)
