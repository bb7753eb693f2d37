"""Quality against latency of the whole model, one curve per family of methods."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from asap_exp.core.console import counted
from asap_exp.core.escaping import on_figure
from asap_exp.core.records.columns import Column
from asap_exp.core.records.words import size_and_form
from asap_exp.report import palette
from asap_exp.report.averages import AveragedRow, averaged_rows, main_rows
from asap_exp.report.captions import group_title
from asap_exp.report.drawing import subplots
from asap_exp.report.groups import Group
from asap_exp.report.names import (
    COARSE,
    COARSE_ALONE,
    ESPFORMER,
    NO_SLICES,
    RELAXED,
    SOFTMAX,
    UNIFORM,
)
from asap_exp.report.notes import controls_are_unfused
from asap_exp.report.pareto import goodness, has_maps, points, quality

LINE = 0.2
"""Height of a line below the axes, in inches."""
NAMED = 4
"""Methods beyond the axes that are named below them."""
DEPTH = 0.1
"""Depth of the quality axis below the teacher's accuracy, or as a share above its perplexity."""
GAP = 2
"""Largest gap above the last rows, in lengths of the axis that the others take."""
PALE = "pale: beaten by a faster one"
PALER: dict[str, Any] = {
    "linestyle": "",
    "markersize": 4,
    "alpha": 0.35,
    "markeredgewidth": 0,
    "zorder": 2,
}


@dataclass(frozen=True)
class Family:
    """Methods drawn as one curve, distinguished by marker and line as well as by colour."""

    name: str
    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]
    joins_all: bool = False
    """True if the curve joins all points, not only those better than every faster one."""


SOFTMAX_TEACHER = "softmax teacher"
FAMILIES = {
    "teacher": Family("Sinkhorn teacher", palette.BLACK, "*", ""),
    SOFTMAX_TEACHER: Family(SOFTMAX_TEACHER, palette.BLACK, "*", ""),
    "asap": Family("ASAP", palette.ORANGE, "o", "-"),
    "imitation": Family("imitation of softmax", palette.ORANGE, "o", "-"),
    "budget": Family("chosen by budget, no ASAP", palette.ORANGE, ">", (0, (5, 1))),
    "truncated": Family("Sinkhorn cut to T' updates", palette.BLUE, "s", "--", joins_all=True),
    "relaxed": Family("T' over-relaxed updates", palette.LIGHT_BLUE, "D", ":", joins_all=True),
    "control": Family(NO_SLICES, palette.GREY, "X", "-."),
    "uniform": Family(UNIFORM, palette.GREY, "P", ""),
    "softmax": Family(SOFTMAX, palette.GREEN, "^", ""),
    "espformer": Family(ESPFORMER, palette.PINK, "v", ""),
    "coarse two-sided": Family(f"{COARSE_ALONE}, two-sided", palette.YELLOW, "p", (0, (1, 1))),
    "coarse one pass": Family(
        f"{COARSE_ALONE}, one pass", palette.DARK_YELLOW, "d", (0, (3, 1, 1, 1))
    ),
    "coarse": Family(COARSE, palette.YELLOW, "h", ""),
    "relaxed_sinkhorn": Family(RELAXED, palette.LIGHT_BLUE, "H", ""),
    "rival": Family("other attentions, same recipe", palette.PINK, "<", ""),
}
NUMBERED = ("truncated", "relaxed", "coarse two-sided", "coarse one pass", "coarse")
"""Families whose points are labelled with a number: of updates, or of tokens of the subset."""
MARKER = 4.5
"""Half the width of a marker, in pixels."""
LABELS = {
    "truncated": palette.BLUE,
    "relaxed": "#1F7FB5",
    "coarse two-sided": "#8A7A00",
    "coarse one pass": "#7A5C00",
    "coarse": "#8A6A00",
}
"""Colours of these labels: a thin letter needs a darker one than a marker."""


def family_of(row: AveragedRow) -> str | None:
    """Return the family of a row; None if only the tables show it."""
    if row.key in ("control_zero", "softmax_swapped") or row.key.startswith("asap_layer"):
        return None
    if row.key == "control_uniform":
        return "uniform"
    if row.key == "control_unfitted":
        return None
    if row.group == "teacher" and row.label == SOFTMAX_TEACHER:
        return row.label
    if row.group == "coarse" and not row.key.endswith("_trained"):
        found = size_and_form(row.label)
        return None if found is None else f"coarse {found[1]}"
    return row.group if row.group in FAMILIES else None


def number_of(row: AveragedRow) -> str:
    """Return the number of updates of a truncation, or of tokens that a coarse dual is made of."""
    found = size_and_form(row.label)
    if row.group == "coarse":
        return "" if found is None else str(found[0])
    return row.key.removeprefix(f"{row.group}_")


def accuracy_latency(group: Group) -> Figure:
    """Draw the figure of a group, with all its maps if they were measured."""
    beyond = on_figure(beyond_words(group), 95).splitlines()
    figure, axes = subplots(8, 4.6 + LINE * len(beyond))
    draw_group(axes, group)
    for row in averaged_rows(group):
        if row.group == "baseline" and row[quality(group).key] is not None:
            level = quality(group).scale * row.mean(quality(group).key)
            label = on_figure(row.name)
            axes.axhline(level, color=palette.GREY, linestyle=(0, (1, 3)), label=label)
    time = on_figure(
        f"time of the model, ms per batch of {group.first.latency.batch_size} "
        f"(log scale), {group.first.device}"
    )
    axes.set_xlabel("\n".join([time, *beyond]))
    axes.set_ylabel(quality_title(group))
    milliseconds(axes)
    seeds = f", mean of {len(group.records)} seeds" if len(group.records) > 1 else ""
    axes.set_title(on_figure(f"{group_title(group)}{seeds}", 80), fontsize=10)
    legend(figure)
    label_updates(figure, axes, group)
    return figure


def legend(figure: Figure) -> None:
    """Draw one legend of all axes above them, where it hides nothing."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    entries |= {PALE: entries.pop(PALE)} if PALE in entries else {}  # the last one
    style: dict[str, Any] = {"fontsize": 9, "frameon": False, "ncols": 3}
    figure.legend(list(entries.values()), list(entries), loc="outside upper center", **style)


def quality_title(group: Group) -> str:
    """Return the title of the quality axis."""
    column = quality(group)
    return f"test {column.title}{', lower is better' if column.lower_is_better else ''}"


def rows_of(group: Group) -> list[AveragedRow]:
    """Return the rows that the figures show, fastest first."""
    trained = [row for row in main_rows(group) if row.key.endswith("_trained")]
    every = [*points(group), *trained] if has_maps(group) else main_rows(group)
    known = [
        row
        for row in every
        if family_of(row) and row["model_ms"] is not None and row[quality(group).key] is not None
    ]
    return sorted(known, key=lambda row: row.mean("model_ms"))


def visible(group: Group) -> list[AveragedRow]:
    """Return the rows that are not far worse than the teacher, or than all the others."""
    column = quality(group)
    (teacher,) = (row for row in averaged_rows(group) if row.group == "teacher")
    if teacher[column.key] is None:  # the teacher's perplexity is infinite: no row is far above it
        return rows_of(group)
    level = goodness(teacher, column)
    least = level * (1 + DEPTH) if column.lower_is_better else level - DEPTH
    near = [row for row in rows_of(group) if goodness(row, column) >= least]
    return [row for row in near if goodness(row, column) >= lone(near, column)]


def lone(rows: Iterable[AveragedRow], column: Column) -> float:
    """Return the least goodness above a gap by which one or two rows would flatten all others."""
    found = sorted({goodness(row, column) for row in rows}, reverse=True)
    for place in range(max(len(found) - 2, 2), len(found)):
        if found[place - 1] - found[place] > GAP * (found[0] - found[place - 1]):
            return found[place - 1]
    return -math.inf


def beyond_words(group: Group) -> str:
    """Say which methods are too far from the teacher for the axes; empty if none is."""
    column, near = quality(group), {row.key for row in visible(group)}
    far = [row for row in rows_of(group) if row.key not in near]
    if not far:
        return ""
    far.sort(key=lambda row: -goodness(row, column))
    listed = ", ".join(f"{row.name} ({column.number(row.mean(column.key))})" for row in far[:NAMED])
    side = "above" if column.lower_is_better else "below"
    more = f" and {len(far) - NAMED} more" if len(far) > NAMED else ""
    return f"{counted(len(far), 'method')} {side} the axis: {listed}{more}"


def draw_group(axes: Axes, group: Group, *, scale: float = 1) -> None:
    """Draw every family with a visible point; milliseconds are multiplied by `scale`.

    Curves continue below the axes to rows that are far worse than the teacher.
    """
    column, shown, pale = quality(group), visible(group), set[str]()
    for kind, family in FAMILIES.items():
        if any(family_of(row) == kind for row in shown):
            mine = [row for row in rows_of(group) if family_of(row) == kind]
            hollow = kind == "control" and controls_are_unfused(group)
            draw_family(axes, mine, family, column, scale, hollow=hollow)
            pale |= {row.key for row in mine} - {row.key for row in joined(mine, family, column)}
    if pale & {row.key for row in shown}:
        axes.plot([], [], color=palette.GREY, marker="o", label=PALE, **PALER)
    axes.grid(alpha=0.25)
    if shown:
        x, y = coordinates(shown, column, scale)
        bars = [column.scale * deviation(row, column) for row in shown]
        low = min(value - bar for value, bar in zip(y, bars, strict=True))
        high = max(value + bar for value, bar in zip(y, bars, strict=True))
        margin = 0.08 * (high - low) or 1
        axes.set_ylim(low - margin, high + margin)
        room = max((max(x) / min(x)) ** 0.06, 1.01)
        axes.set_xlim(min(x) / room, max(x) * room)


def draw_family(
    axes: Axes,
    rows: Sequence[AveragedRow],
    family: Family,
    column: Column,
    scale: float,
    *,
    hollow: bool = False,
) -> None:
    """Draw a curve, and beside it the rows that it does not join; hollow if it was not fused."""
    curve = joined(rows, family, column)
    spread = [column.scale * deviation(row, column) for row in curve]
    # The star is large, and a coarse dual of all tokens is where it is.
    order = 4 if family is FAMILIES["asap"] else 1.8 if family.marker == "*" else 3
    axes.errorbar(
        *coordinates(curve, column, scale),
        yerr=spread if any(spread) else None,
        label=f"{family.name} (hollow: not fused)" if hollow else family.name,
        color=family.colour,
        marker=family.marker,
        markerfacecolor="white" if hollow else family.colour,
        linestyle=family.line,
        markersize=11 if family.marker == "*" else 6,
        linewidth=1.6,
        elinewidth=1,
        capsize=2,
        zorder=order,
    )
    others = [row for row in rows if row not in curve]
    axes.plot(
        *coordinates(others, column, scale), color=family.colour, marker=family.marker, **PALER
    )


def deviation(row: AveragedRow, column: Column) -> float:
    """Return the standard deviation of a row's quality, 0 of a single measurement."""
    average = row[column.key]
    return 0.0 if average is None or average.std is None else average.std


def coordinates(
    rows: Sequence[AveragedRow], column: Column, scale: float
) -> tuple[list[float], list[float]]:
    return (
        [scale * row.mean("model_ms") for row in rows],
        [column.scale * row.mean(column.key) for row in rows],
    )


def joined(rows: Sequence[AveragedRow], family: Family, column: Column) -> Sequence[AveragedRow]:
    """Return the rows that the family's curve joins."""
    return rows if family.joins_all else front(rows, column)


def front(rows: Iterable[AveragedRow], column: Column) -> list[AveragedRow]:
    """Return the rows, in order of latency, that are better than every faster one."""
    found: list[AveragedRow] = []
    for row in rows:
        if not found or goodness(row, column) > goodness(found[-1], column):
            found.append(row)
    return found


def milliseconds(axes: Axes) -> None:
    """Give the latency axis a logarithmic scale with round numbers."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # Within one decade a logarithmic axis has too few ticks.
    equal, logarithmic = MaxNLocator(nbins=8, steps=[1, 2, 5, 10]), LogLocator(subs=(1, 2, 5))
    axes.xaxis.set_major_locator(equal if high < 10 * low else logarithmic)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def label_updates(
    figure: Figure, axes: Axes, group: Group, *, scale: float = 1, size: float = 9, gap: float = 0
) -> None:
    """Label truncations with their updates, coarse duals with their tokens.

    A label within `gap` px of another is left out. Milliseconds are multiplied by `scale`.
    """
    column, rows = quality(group), visible(group)
    figure.draw_without_rendering()  # the layout settles before labels are placed in it
    texts, places = [], list[tuple[float, float]]()
    for row in rows:
        if (family := family_of(row)) in NUMBERED:
            (at,) = zip(*coordinates([row], column, scale), strict=True)
            place = tuple(axes.transData.transform(at))
            if not axes.bbox.contains(*place) or any(
                math.dist(place, other) < gap for other in places
            ):
                continue
            places.append(place)
            # Start with plain truncations labelled below their curve and relaxed ones above it.
            shift = (5, -15) if row.group == "truncated" else (-8, 5)
            x, y = axes.transData.inverted().transform(np.add(place, shift))
            colour = LABELS[family]
            text = axes.text(x, y, number_of(row), color=colour, fontsize=size, zorder=6)
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
            texts.append(text)
    if texts:
        adjust_text(
            texts,
            *edges(axes, coordinates(rows, column, scale)),
            ax=axes,
            expand=(1.4, 1.4),
            iter_lim=500,  # by default it always runs for one second
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6},
        )


def edges(
    axes: Axes, points: tuple[Sequence[float], Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the markers at these points: labels must not touch a marker."""
    corners = [(-MARKER, -MARKER), (-MARKER, MARKER), (MARKER, -MARKER), (MARKER, MARKER), (0, 0)]
    middles = axes.transData.transform(np.transpose(points))
    around = (middles[:, None] + np.array(corners)).reshape(-1, 2)
    x, y = axes.transData.inverted().transform(around).T
    return x, y
