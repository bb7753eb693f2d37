"""Time against length, one line a method, on logarithmic axes."""

from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from asap_exp.benchmarking.records import Record, cells, columns
from asap_exp.benchmarking.table import title

MARKERS = "osD^v<>PX*"


def time_figure(record: Record) -> Figure:
    """Medians, with a bar between the quartiles; hollow if scaled, a gap without a time."""
    figure, axes = plt.subplots(figsize=(8.5, 5), layout="constrained")
    for number, (method, label) in enumerate(columns(record).items()):
        timed = [
            (row["n"], cell["ms"], cell["scaled_from"])
            for row, cell in cells(record)
            if cell["method"] == method and cell["ms"] is not None
        ]
        if not timed:
            continue
        medians = [ms["median"] for _, ms, _ in timed]
        below = [ms["median"] - ms["q1"] for _, ms, _ in timed]
        above = [ms["q3"] - ms["median"] for _, ms, _ in timed]
        style: dict[str, Any] = {
            "color": plt.get_cmap("tab10")(number % 10),
            "marker": MARKERS[(number + number // 10) % len(MARKERS)],
            "markersize": 5,
        }
        lengths = [n for n, _, _ in timed]
        axes.errorbar(lengths, medians, yerr=[below, above], capsize=2, label=label, **style)
        hollow = [(n, ms["median"]) for n, ms, part in timed if part is not None]
        if hollow:
            axes.plot(*zip(*hollow, strict=True), linestyle="", markerfacecolor="white", **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row["n"] for row in record["rows"]])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"n, tokens a sample (batch x heads x n = {record['tokens']:,})")
    axes.set_ylabel("ms")
    axes.set_title(title(record), fontsize=10)
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside right upper")
    return figure
