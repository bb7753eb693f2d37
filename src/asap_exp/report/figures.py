"""Figures of a group of records, as matplotlib figures; the report saves them as PNG."""

import re
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from asap_exp.core.escaping import on_figure
from asap_exp.core.records.evaluation import Curve
from asap_exp.report.averages import AveragedRow, averaged_rows, main_rows
from asap_exp.report.drawing import new_figure, subplots
from asap_exp.report.groups import Group
from asap_exp.report.label_placement import Label, place_labels
from asap_exp.report.markdown import group_title
from asap_exp.report.pareto import Point, has_maps, points

# Okabe and Ito's palette: distinct for colour-blind readers too.
COLOURS = {
    "teacher": "#000000",
    "asap": "#D55E00",
    "truncated": "#0072B2",
    "relaxed": "#56B4E9",
    "control": "#999999",
    "softmax": "#009E73",
    "espformer": "#CC79A7",
}
TRUNCATED = ("truncated", "relaxed")
"""Groups that are points of a curve."""

Height = tuple[str, float]
"""Which measure a figure's vertical axis shows, and by how much it is scaled."""
ACCURACY: Height = ("accuracy", 100)
PERPLEXITY: Height = ("perplexity", 1)

SomeRow = TypeVar("SomeRow", bound=AveragedRow)

MOST_SEEDS = 10
"""That a legend names one by one."""

DEPTH = 0.1
"""How far below the teacher's accuracy the figures of it go, or what share above its perplexity."""

NAMES = {
    "teacher": "Sinkhorn teacher",
    "asap": "ASAP",
    "truncated": "truncated Sinkhorn",
    "relaxed": "truncated Sinkhorn, relaxed",
    "control": "controls",
    "softmax": "row softmax",
    "espformer": "ESPFormer",
}


def group_figures(group: Group) -> dict[str, Figure]:
    """By name: accuracy against latency, training curves, plans, fidelity per layer.

    With several maps of the teacher, what is dominated among all that was measured too.
    """
    return ({"pareto": pareto(group)} if has_maps(group) else {}) | {
        "accuracy_latency": accuracy_latency(group),
        "training": training(group),
        "plans": plans(group),
        "fidelity": fidelity(group),
    }


def accuracy_latency(group: Group) -> Figure:
    figure, axes = subplots(10, 4.8)
    measure, _ = height = height_of(group)
    rows = [
        row
        for row in main_rows(group)
        if row["model_ms"] is not None
        and row[measure] is not None
        and not row.key.startswith("asap_layer")
    ]
    shown = near_the_teacher(rows, group)
    for kind in COLOURS:
        mine = [row for row in shown if row.group == kind]
        if mine:
            line = "-" if kind in TRUNCATED else ""
            size = 8 if kind == "asap" else 6
            errorbars(axes, mine, kind, height, linestyle=line, markersize=size)
    for row in averaged_rows(group):
        if row.group == "baseline" and row[measure] is not None:
            level, label = high(row, height), on_figure(row.label)
            axes.axhline(level, color=COLOURS["control"], linestyle=":", label=label)
    left_out = [
        f"{point_label(row.key)} {high(row, height):.1f}" for row in rows if row not in shown
    ]
    side = "Above" if height is PERPLEXITY else "Below"
    below = f"{side} the figure: {', '.join(left_out)}" if left_out else ""
    finish_accuracy_latency(axes, group, below)
    place_labels(axes, [beside(row, point_label(row.key), height) for row in shown])
    return figure


def height_of(group: Group) -> Height:
    return PERPLEXITY if group.first.is_masked else ACCURACY


def high(row: AveragedRow, height: Height) -> float:
    """Where the row stands on the vertical axis."""
    measure, scale = height
    return scale * row.mean(measure)


def pareto(group: Group) -> Figure:
    """Filled: nothing measured is as accurate in less time. Hollow: dominated.

    Letters stand for what is not dominated; what is far below the teacher is only named.
    """
    figure, axes = subplots(10, 7)
    height = height_of(group)
    measured = points(group)
    rows = near_the_teacher(measured, group)
    for kind in COLOURS:
        for dominated in (False, True):
            mine = [r for r in rows if r.group == kind and bool(r.dominated_by) is dominated]
            if mine:
                style = {"markerfacecolor": "none"} if dominated else {}
                words = f"{NAMES[kind]}{', dominated' if dominated else ''}"
                errorbars(axes, mine, kind, height, linestyle="", label=words, **style)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    named: list[str] = []
    labels: list[Label] = []
    for row in rows:
        if row.group in TRUNCATED:
            labels.append(beside(row, point_label(row.key), height))
        elif row.dominated_by is None and (letter := next(letters, None)):
            labels.append(beside(row, letter, height))
            named.append(f"{letter}: {on_figure(row.label)}")
    far = [short_label(row) for row in measured if row not in rows]
    if far:
        lines = textwrap.wrap(f"far below the teacher, not shown: {'; '.join(far)}", 150)
        named += map(on_figure, lines)
    finish_accuracy_latency(axes, group, "\n".join(named))
    place_labels(axes, labels)
    return figure


def short_label(row: Point) -> str:
    return point_label(row.key) if row.group in TRUNCATED else row.label


def near_the_teacher(rows: Sequence[SomeRow], group: Group) -> list[SomeRow]:
    """Those of `rows` within DEPTH of the group's teacher, which need not be among them."""
    measure, _ = height = height_of(group)
    known = [row for row in rows if row[measure] is not None]
    (teacher,) = (r[measure] for r in averaged_rows(group) if r.group == "teacher")
    if teacher is None:  # of an infinite perplexity: nothing is far above it
        return known
    if height is PERPLEXITY:
        most = teacher.mean * (1 + DEPTH)
        return [row for row in known if row.mean(measure) <= most]
    return [row for row in known if row.mean(measure) >= teacher.mean - DEPTH]


def errorbars(
    axes: Axes, rows: Sequence[AveragedRow], kind: str, height: Height, **style: Any
) -> None:
    """A measure of the rows over the milliseconds of their models."""
    measure, scale = height
    spreads = [row[measure] for row in rows]
    error = [scale * ((x and x.std) or 0) for x in spreads]
    axes.errorbar(
        [row.mean("model_ms") for row in rows],
        [high(row, height) for row in rows],
        yerr=error if any(error) else None,
        **{
            "marker": "o",
            "color": COLOURS[kind],
            "label": NAMES[kind],
            "capsize": 2,
            "zorder": 3 if kind == "asap" else 2,
            **style,
        },
    )


def beside(row: AveragedRow, words: str, height: Height) -> Label:
    return Label(words, row.mean("model_ms"), high(row, height), COLOURS[row.group])


def heading(group: Group, more: str = "") -> str:
    """The group's title and `more`, in lines that fit above a figure."""
    return on_figure(group_title(group) + more, 110)


def finish_accuracy_latency(axes: Axes, group: Group, below: str) -> None:
    """Scales, titles, a legend beside the points, and the words `below` the figure."""
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    low, high = axes.get_xlim()
    # Ticks at round numbers: within one power of ten, those of a logarithmic axis are too few.
    equal, logarithmic = MaxNLocator(nbins=10, steps=[1, 2, 5, 10]), LogLocator(subs=(1, 2, 5))
    axes.xaxis.set_major_locator(equal if high < 10 * low else logarithmic)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8)
    record = group.first
    device = on_figure(record.device)
    axes.set_xlabel(f"whole model, ms a batch of {record.latency.batch_size} ({device})")
    axes.set_ylabel("test perplexity" if record.is_masked else "test accuracy, %")
    axes.grid(alpha=0.3)
    figure = axes.figure
    figure.suptitle(heading(group, f"; seeds: {len(group.records)}"), fontsize=10)
    figure.legend(fontsize=8, loc="outside right center")
    if below:
        figure.supxlabel(below, fontsize=8, x=0.02, ha="left")


def point_label(key: str) -> str:
    names = {
        "teacher": "teacher",
        "asap": "ASAP",
        "control_zero": "zero weights",
        "control_query": "query only",
        "control_uniform": "uniform",
        "softmax_swapped": "swapped in",
        "softmax_trained": "trained alike",
        "espformer_trained": "trained alike",
    }
    truncated = re.sub(r"^truncated_(\d+)$", r"T'=\1", key)
    return on_figure(names.get(key, re.sub(r"^relaxed_(\d+)$", r"T'=\1 relaxed", truncated)))


def training(group: Group) -> Figure:
    """The loss, and the measure on the validation split where training left one."""
    panels = [("train/loss_epoch", 1.0, "training loss (as trained)")]
    if group.first.is_masked:
        panels.append(("val/perplexity", 1.0, "validation perplexity"))
    else:
        panels.append(("val/accuracy", 100.0, "validation accuracy, %"))
    validated = any(panels[1][0] in row for record in group.records for row in record.curves)
    if not validated:  # a final recipe trains on the validation rows too
        del panels[1]
    figure, all_axes = subplots(9, 3.6, ncols=len(panels), squeeze=False)
    for axes, (name, scale, words) in zip(all_axes.flat, panels, strict=True):
        for record in group.records:
            alpha = 1.0 if len(group.records) == 1 else 0.6
            label = f"seed {record.seed}"
            plot_curve(axes, record.curves, name, scale, alpha=alpha, label=label)
        axes.set_ylabel(words)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        axes.grid(alpha=0.3)
    left = all_axes[0, 0]
    if left.lines and len(group.records) <= MOST_SEEDS:
        left.legend(fontsize=8)
    more = "" if len(group.records) <= MOST_SEEDS else f"; seeds: {len(group.records)}"
    more += "" if validated else "; trained on train+val, no validation"
    figure.suptitle(heading(group, more), fontsize=10)
    return figure


def plot_curve(axes: Axes, curves: Curve, name: str, scale: float, **style: Any) -> None:
    points = [(row["epoch"] + 1, scale * row[name]) for row in curves if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def plans(group: Group) -> Figure:
    """Teacher, ASAP and softmax side by side, with row sums to the right and column sums below."""
    example, samples = group.first.plans, group.first.samples
    titles = {"teacher": "Sinkhorn teacher", "asap": "ASAP", "softmax": "row softmax"}
    methods = {name: np.array(getattr(example.plans, name)) for name in titles}
    block = example.block
    of = "block of " if block > 1 else ""
    top = float(np.quantile(methods["teacher"], 0.995))
    sums = max(2.0, *(float(plan.sum(axis=0).max()) for plan in methods.values()))
    figure = new_figure(11, 4.6)
    parts = np.ravel(np.asarray(figure.subfigures(1, 3)))
    for part, (name, plan) in zip(parts, methods.items(), strict=True):
        grid = part.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(5, 1))
        image = part.add_subplot(grid[0, 0])
        image.imshow(plan, cmap="magma", vmin=0, vmax=top, aspect="auto")
        image.set_title(titles[name], fontsize=10)
        image.set_ylabel(f"{of}query" if name == "teacher" else "")
        image.tick_params(labelsize=7)
        positions = np.arange(len(plan))
        rows = part.add_subplot(grid[0, 1], sharey=image)
        rows.barh(positions, plan.sum(axis=1), color=COLOURS["truncated"])
        columns = part.add_subplot(grid[1, 0], sharex=image)
        columns.bar(positions, plan.sum(axis=0), color=COLOURS["asap"])
        for axes, line in ((rows, rows.axvline), (columns, columns.axhline)):
            line(1.0, color="black", linewidth=0.8, linestyle="--")
            axes.tick_params(labelsize=7)
        rows.set_xlim(0, 2)
        columns.set_ylim(0, 1.05 * sums)
        rows.set_xlabel("row sum", fontsize=8)
        columns.set_xlabel(f"{of}key (bars: column sums)", fontsize=8)
        rows.tick_params(labelleft=False)
        image.tick_params(labelbottom=False)
    blocks = f", means over blocks of {block} tokens" if block > 1 else ""
    figure.suptitle(
        heading(
            group,
            f": plan of {example.layer}, head {example.head}, one of the test {samples}{blocks}",
        ),
        fontsize=10,
    )
    return figure


def fidelity(group: Group) -> Figure:
    """R^2 held out, and L1 row distance, by layer: a dot a head, a bar at their mean."""
    rows = [row for record in group.records for row in record.fidelity]
    layers = list(dict.fromkeys(row.layer for row in rows))
    panels = (
        ("r_squared_held_out", "R² of the dual, held out"),
        ("l1_row_distance", "L1 row distance to the teacher"),
        ("column_error", "column error (hollow: the teacher's)"),
    )
    figure, all_axes = subplots(11, 3.4, ncols=3)
    for axes, (name, title) in zip(all_axes, panels, strict=True):
        for number, layer in enumerate(layers):
            mine = [row for row in rows if row.layer == layer]
            values = [x for row in mine if (x := getattr(row, name)) is not None]
            if values:
                axes.bar(number, statistics.fmean(values), color=COLOURS["asap"], alpha=0.35)
                axes.scatter([number] * len(values), values, s=10, color=COLOURS["asap"])
            if name == "column_error":
                known = [row.teacher_column_error for row in mine]
                teacher = [value for value in known if value is not None]
                axes.scatter(
                    [number + 0.25] * len(teacher),
                    teacher,
                    s=12,
                    facecolors="none",
                    edgecolors=COLOURS["teacher"],
                )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("layer")
        axes.set_xticks(range(len(layers)))
        axes.grid(alpha=0.3, axis="y")
    figure.suptitle(heading(group, ": fidelity on held-out samples, a dot a head"), fontsize=10)
    return figure
