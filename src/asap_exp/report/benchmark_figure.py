"""Time against length, one line a method, on logarithmic axes; of one length, a list of times."""

import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from asap_exp.core.escaping import on_figure
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.latency import Latency
from asap_exp.report.benchmark_table import number, title
from asap_exp.report.drawing import subplots

MARKERS = "osD^v<>PX*"
TITLE_WIDTH = 62
"""Characters a line: the legend of many methods takes room beside the axes."""


def time_figure(record: BenchmarkRecord) -> Figure:
    """Medians, with a bar between the quartiles; hollow if scaled, a gap without a time."""
    figure, axes = subplots(8.5, 5)
    if len(record.rows) == 1:
        draw_times(axes, record)
        figure.set_figheight(1.5 + 0.27 * len(axes.get_yticks()))
    else:
        draw_lines(axes, record)
        figure.legend(fontsize=8, loc="outside right upper")
    axes.grid(alpha=0.3, which="both")
    lines = textwrap.wrap(title(record), TITLE_WIDTH, break_on_hyphens=False)
    axes.set_title("\n".join(map(on_figure, lines)), fontsize=10)
    return figure


def draw_lines(axes: Axes, record: BenchmarkRecord) -> None:
    for place, (method, label) in enumerate(record.columns.items()):
        timed = [
            (row.n, cell.ms, cell.scaled_from)
            for row, cell in record.cells
            if cell.method == method and cell.ms is not None
        ]
        if not timed:
            continue
        lengths = [n for n, _, _ in timed]
        medians, error = medians_and_bars([ms for _, ms, _ in timed])
        style: dict[str, Any] = {
            "color": matplotlib.colormaps["tab10"](place % 10),
            "linestyle": "-" if place < 10 else "--",
            "marker": MARKERS[(place + place // 10) % len(MARKERS)],
            "markersize": 5,
        }
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
    axes.set_xlabel(f"n, tokens a sample (batch x heads x n = {record.tokens:,})")
    axes.set_ylabel("ms")


def draw_times(axes: Axes, record: BenchmarkRecord) -> None:
    """Of one length: a line of the figure for each method, with its time in words."""
    (row,) = record.rows
    timed = [(cell, cell.ms) for cell in row.cells if cell.ms is not None]
    for height, (cell, ms) in enumerate(timed):
        (median,), error = medians_and_bars([ms])
        face = "C0" if cell.scaled_from is None else "white"
        axes.errorbar(
            median, height, xerr=error, marker="o", color="C0", capsize=2, markerfacecolor=face
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
    """Medians, and how far the quartiles are below and above them."""
    medians = [ms.median for ms in times]
    below = [ms.median - ms.q1 for ms in times]
    above = [ms.q3 - ms.median for ms in times]
    return medians, [below, above]
