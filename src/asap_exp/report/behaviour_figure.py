"""What the plans do: columns, entropy and rank by depth, and what corruptions cost."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from asap_exp.core.escaping import on_figure
from asap_exp.core.records.columns import Average
from asap_exp.report import palette
from asap_exp.report.behaviour import AveragedBehaviour, behaviours, samples_of
from asap_exp.report.drawing import heading, new_figure
from asap_exp.report.groups import Group

USUAL = {
    "teacher": (palette.BLACK, "*"),
    "asap": (palette.ORANGE, "o"),
    "imitation": (palette.ORANGE, "o"),
    "budget": (palette.ORANGE, ">"),
    "softmax": (palette.GREEN, "^"),
    "espformer": (palette.PINK, "v"),
    "coarse": (palette.YELLOW, "h"),
    "relaxed_sinkhorn": (palette.LIGHT_BLUE, "H"),
}
"""Colour and marker of the first method of a group of rows, as in the figure of accuracies."""
FURTHER = (
    (palette.BLUE, "s"),
    (palette.DARK_YELLOW, "d"),
    (palette.GREY, "X"),
    (palette.LIGHT_BLUE, "D"),
    (palette.YELLOW, "p"),
    (palette.GREEN, "<"),
    (palette.PINK, ">"),
    (palette.ORANGE, "P"),
)
"""Those of further ones; after the last of them they begin again, dashed."""
DODGE = 0.1
"""Distance between the markers of the first and the last method at the same place."""
LINES, LINE = 4, 0.17
"""Lines of a column of the legend that a figure has room for, and inches of each further one."""
MOST_TICKS = 6
"""Numbers of layers or severities that all have a tick."""


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    line: str = "-"


def styles(found: Sequence[AveragedBehaviour]) -> list[Style]:
    """Return a style for each method, all different."""
    taken: set[tuple[str, str]] = set()
    chosen = []
    lines = ("-", "--", ":", "-.")
    for each in found:
        usual = USUAL.get(each.group)
        left = [look for look in FURTHER if look not in taken]
        look = usual if usual is not None and usual not in taken else next(iter(left), None)
        if look is None:
            taken.clear()
            lines = (*lines[1:], lines[0])
            look = FURTHER[0]
        taken.add(look)
        chosen.append(Style(*look, lines[0]))
    return chosen


def behaviour(group: Group) -> Figure:
    """Draw a panel for each measure and, of images, one for each corruption, a line per model."""
    found = behaviours(group)
    corrupted = bool(found[0].drops)
    figure = new_figure(8, (5.6 if corrupted else 3.4) + legend_height(found))
    grid = figure.subplots(nrows=1 + corrupted, ncols=3, squeeze=False)
    draw_depth(grid[0], found)
    if corrupted:
        draw_drops(grid[1], found)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=f"hollow: compiled from the teacher{', in brackets: test accuracy' * corrupted}",
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        title_fontsize=8,
        frameon=False,
    )
    words = f": what the plans do, on {samples_of(group)} test {group.first.samples}"
    figure.suptitle(heading(group, words), fontsize=10)
    return figure


def legend_height(found: Sequence[AveragedBehaviour]) -> float:
    """Return inches that the legend of many methods takes, which the panels must not lose."""
    half = -(-len(found) // 2)
    lines = [in_legend(each).count("\n") + 1 for each in found]
    return LINE * max(sum(lines[:half]) - LINES, sum(lines[half:]) - LINES, 0)


def draw_depth(row: Sequence[Axes], found: Sequence[AveragedBehaviour]) -> None:
    """Draw column sums and entropy by layer, and the rank before and after each block."""
    columns, entropy, rank = row
    sums, entropies, ranks = (
        [list(enumerate(values)) for values in of_methods]
        for of_methods in (
            [each.layers["largest_column"] for each in found],
            [each.layers["relative_entropy"] for each in found],
            [each.ranks for each in found],
        )
    )
    panel(columns, "largest column sum\n(1: doubly stochastic)", "layer", sums, found)
    logarithmic(columns)
    panel(entropy, "relative entropy of a row\n(1: uniform attention)", "layer", entropies, found)
    panel(
        rank, "effective rank of the tokens\n(1: all tokens alike)", "blocks passed", ranks, found
    )
    rank.set_ylim(0, 1.08 * max(x.mean + (x.std or 0.0) for each in found for x in each.ranks))


def draw_drops(row: Sequence[Axes], found: Sequence[AveragedBehaviour]) -> None:
    """Draw the points of accuracy that each corruption costs, on one scale."""
    changes = list(dict.fromkeys(drop.name for drop in found[0].drops))
    for axes, name in zip(row, changes, strict=True):
        lines = [
            [(drop.severity, drop.points) for drop in each.drops if drop.name == name]
            for each in found
        ]
        panel(axes, f"{on_figure(name)}: points lost", "severity", lines, found)
        axes.axhline(0, color=palette.GREY, linewidth=0.8, linestyle="--", zorder=1)
    alike(row)


def in_legend(found: AveragedBehaviour) -> str:
    """Return a method's name, with the accuracy that its drops begin at."""
    # A line is not broken within the brackets.
    accuracy = f" ({100 * found.accuracy.mean:.1f}\N{NO-BREAK SPACE}%)" if found.drops else ""
    return on_figure(f"{found.name}{accuracy}", 56)


def panel(
    axes: Axes,
    title: str,
    across: str,
    lines: Sequence[Sequence[tuple[int, Average]]],
    found: Sequence[AveragedBehaviour],
) -> None:
    """Draw a line per method; its marker has the deviation over models, if there are several."""
    shifts = [DODGE * (n / max(len(lines) - 1, 1) - 0.5) for n in range(len(lines))]
    places = [place for place, _ in lines[0]]
    step = min((b - a for a, b in itertools.pairwise(places)), default=1)
    for line, each, look, shift in zip(lines, found, styles(found), shifts, strict=True):
        values = [value for _, value in line]
        axes.errorbar(
            [place + shift * step for place, _ in line],
            [value.mean for value in values],
            yerr=[value.std or 0.0 for value in values] if values[0].std is not None else None,
            label=in_legend(each),
            color=look.colour,
            marker=look.marker,
            markerfacecolor="white" if each.compiled else look.colour,
            linestyle=look.line,
            markersize=7 if look.marker == "*" else 5,
            linewidth=1.2,
            elinewidth=0.8,
            alpha=0.9,
        )
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across, fontsize=9)
    few = len(places) <= MOST_TICKS
    axes.xaxis.set_major_locator(
        FixedLocator(places) if few else MaxNLocator(nbins=MOST_TICKS, integer=True)
    )
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, axis="y")


def logarithmic(axes: Axes) -> None:
    """Give column sums a logarithmic axis from 1, with few and plain numbers."""
    axes.set_yscale("log")
    _, top = axes.get_ylim()
    axes.set_ylim(0.95, max(2.0, top))
    ticks = [t for scale in (1, 10, 100, 1000) for t in (scale, 2 * scale, 5 * scale)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= max(2.0, top)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.axhline(1, color=palette.GREY, linewidth=0.8, linestyle="--", zorder=1)


def alike(row: Sequence[Axes]) -> None:
    """Give axes the same range, so that what corruptions cost can be compared."""
    limits = [axes.get_ylim() for axes in row]
    for axes in row:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
