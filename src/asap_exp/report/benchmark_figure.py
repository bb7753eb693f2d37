"""Time against length, one curve per method; for a single length, a list of times."""

import statistics
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from asap_exp.core.escaping import on_figure
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.latency import Latency
from asap_exp.report import palette
from asap_exp.report.benchmark_table import number, title
from asap_exp.report.drawing import subplots

COLOURS = {
    "asap": palette.ORANGE,
    "sinkhorn": palette.BLUE,
    "flash": palette.GREEN,
    "closure": palette.YELLOW,
    "attention": palette.GREY,
}
"""Colours by the beginning of a method's name; others are OTHER."""
OTHER = palette.PINK
MARKERS = "osD^v<>PX*"
LINES = ("-", "--", "-.", ":")
SLOW = 50
"""Methods beyond this multiple of the fastest, as the median over lengths, are only listed."""
TITLE_WIDTH = 80
"""Characters per line of the title."""


def time_figure(record: BenchmarkRecord) -> Figure:
    """Draw medians with a bar between the quartiles; hollow if scaled, a gap without a time."""
    figure, axes = subplots(8, 4.4)
    if len(record.rows) == 1:
        draw_times(axes, record)
        figure.set_figheight(1.5 + 0.27 * len(axes.get_yticks()))
    else:
        draw_lines(axes, record)
        # Legend entries follow the order of the curves' right ends, so that each is near its curve.
        handles, labels = axes.get_legend_handles_labels()
        last = {on_figure(cell.label): cell.ms for cell in record.rows[-1].cells}
        pairs = sorted(
            zip(labels, handles, strict=True),
            key=lambda pair: -ms.median if (ms := last[pair[0]]) else 0,
        )
        above = [Line2D([], [], linestyle="", label=words) for words in slow_words(record)]
        names = [*(line.get_label() for line in above), *(name for name, _ in pairs)]
        curves = [*above, *(curve for _, curve in pairs)]
        figure.legend(curves, names, fontsize=8, loc="outside right center", frameon=False)
    axes.grid(alpha=0.3)
    lines = textwrap.wrap(title(record), TITLE_WIDTH, break_on_hyphens=False)
    figure.suptitle("\n".join(map(on_figure, lines)), fontsize=10)
    return figure


def slow_methods(record: BenchmarkRecord) -> list[str]:
    """Return the methods too slow for the axis, which would squeeze the others into a tenth."""
    factors: dict[str, list[float]] = {}
    for row in record.rows:
        times = {cell.method: cell.ms.median for cell in row.cells if cell.ms is not None}
        for method, ms in times.items():
            factors.setdefault(method, []).append(ms / min(times.values()))
    return [method for method, each in factors.items() if statistics.median(each) > SLOW]


def slow_words(record: BenchmarkRecord) -> list[str]:
    """Describe the methods above the axis, slowest first."""
    found = []
    for method in slow_methods(record):
        times = [c.ms.median for _, c in record.cells if c.method == method and c.ms is not None]
        label = on_figure(record.columns[method])
        words = f"{label}: {number(min(times))} to {number(max(times))} ms, not drawn"
        found.append((max(times), words))
    return [words for _, words in sorted(found, reverse=True)]


def draw_lines(axes: Axes, record: BenchmarkRecord) -> None:
    """Draw one curve per method: colour by family, marker and line by place in the family."""
    drawn: dict[str, int] = {}
    slow = slow_methods(record)
    for method, label in record.columns.items():
        if method in slow:
            continue
        timed = [
            (row.n, cell.ms, cell.scaled_from)
            for row, cell in record.cells
            if cell.method == method and cell.ms is not None
        ]
        if not timed:
            continue
        colour = next((c for name, c in COLOURS.items() if method.startswith(name)), OTHER)
        place = drawn[colour] = drawn.get(colour, -1) + 1
        medians, error = medians_and_bars([ms for _, ms, _ in timed])
        style: dict[str, Any] = {
            "color": colour,
            "linestyle": LINES[place % len(LINES)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 5,
        }
        lengths = [n for n, _, _ in timed]
        axes.errorbar(lengths, medians, yerr=error, capsize=2, label=on_figure(label), **style)
        hollow = [(n, ms.median) for n, ms, part in timed if part is not None]
        if hollow:
            style["linestyle"] = ""
            axes.plot(*zip(*hollow, strict=True), markerfacecolor="white", **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row.n for row in record.rows])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"n, tokens per sample (batch x heads x n = {record.tokens:,})")
    axes.set_ylabel("time of one call, ms")


def draw_times(axes: Axes, record: BenchmarkRecord) -> None:
    """Write, for a single length, one line per method with its time."""
    (row,) = record.rows
    timed = [(cell, cell.ms) for cell in row.cells if cell.ms is not None]
    for height, (cell, ms) in enumerate(timed):
        (median,), error = medians_and_bars([ms])
        face = palette.BLUE if cell.scaled_from is None else "white"
        axes.errorbar(
            median,
            height,
            xerr=error,
            marker="o",
            color=palette.BLUE,
            capsize=2,
            markerfacecolor=face,
        )
        axes.annotate(
            number(median),
            (median, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.set_yticks(range(len(timed)), [on_figure(cell.label) for cell, _ in timed], fontsize=8)
    axes.set_ylim(len(timed) - 0.5, -0.5)
    axes.set_xlabel(f"ms at n = {row.n} tokens (batch x heads x n = {record.tokens:,})")


def medians_and_bars(times: list[Latency]) -> tuple[list[float], list[list[float]]]:
    """Return the medians, and the distances from them to both quartiles."""
    medians = [ms.median for ms in times]
    below = [ms.median - ms.q1 for ms in times]
    above = [ms.q3 - ms.median for ms in times]
    return medians, [below, above]
