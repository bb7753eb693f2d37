"""Figures of a group of records, as matplotlib figures; the report saves them as PNG."""

import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from asap_exp.core.escaping import on_figure
from asap_exp.core.records.evaluation import Curve
from asap_exp.report.accuracy_figure import FAMILIES, accuracy_latency
from asap_exp.report.captions import group_title
from asap_exp.report.drawing import new_figure, subplots
from asap_exp.report.groups import Group
from asap_exp.report.pareto import quality

MOST_SEEDS = 10
"""Largest number of seeds that a legend names one by one."""

BLUE, ORANGE, BLACK = (FAMILIES[kind].colour for kind in ("truncated", "asap", "teacher"))


def group_figures(group: Group) -> dict[str, Figure]:
    """Return figures by name: quality and latency, training curves, example plans, fidelity."""
    return {
        "accuracy_latency": accuracy_latency(group),
        "training": training(group),
        "plans": plans(group),
        "fidelity": fidelity(group),
    }


def heading(group: Group, more: str = "") -> str:
    """Return the group's title and `more`, wrapped to fit above a figure."""
    return on_figure(group_title(group) + more, 90)


def training(group: Group) -> Figure:
    """Draw the training loss, and the quality on the validation split if there was one."""
    column = quality(group)
    panels = [
        ("train/loss_epoch", 1.0, "training loss (as trained)"),
        (f"val/{column.key}", column.scale, f"validation {column.title}"),
    ]
    validated = any(panels[1][0] in row for record in group.records for row in record.curves)
    if not validated:  # a final recipe trains on the validation rows too
        del panels[1]
    figure, all_axes = subplots(8, 3.2, ncols=len(panels), squeeze=False)
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
    """Draw teacher, ASAP and softmax side by side, row sums to the right and column sums below."""
    example = group.first.plans
    titles = {"teacher": "Sinkhorn teacher", "asap": "ASAP", "softmax": "row softmax"}
    methods = {name: np.array(getattr(example.plans, name)) for name in titles}
    block = example.block
    of = "block of " if block > 1 else ""
    top = float(np.quantile(methods["teacher"], 0.995))
    sums = max(2.0, *(float(plan.sum(axis=0).max()) for plan in methods.values()))
    figure = new_figure(8, 3.4)
    parts = np.ravel(np.asarray(figure.subfigures(1, 3)))
    for part, (name, plan) in zip(parts, methods.items(), strict=True):
        grid = part.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(5, 1))
        image = part.add_subplot(grid[0, 0])
        image.imshow(plan, cmap="magma", vmin=0, vmax=top, aspect="auto")
        image.set_title(titles[name], fontsize=10)
        image.set_ylabel(f"{of}query" if name == "teacher" else "")
        image.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        image.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        image.tick_params(labelsize=8)
        positions = np.arange(len(plan))
        rows = part.add_subplot(grid[0, 1], sharey=image)
        rows.barh(positions, plan.sum(axis=1), color=BLUE)
        columns = part.add_subplot(grid[1, 0], sharex=image)
        columns.bar(positions, plan.sum(axis=0), color=ORANGE)
        for axes, line in ((rows, rows.axvline), (columns, columns.axhline)):
            line(1.0, color="black", linewidth=0.8, linestyle="--")
            axes.tick_params(labelsize=8)
        rows.set_xlim(0, 2)
        columns.set_ylim(0, 1.05 * sums)
        rows.set_xlabel("row sum", fontsize=8)
        columns.set_xlabel(f"{of}key, column sums", fontsize=8)
        rows.tick_params(labelleft=False)
        image.tick_params(labelbottom=False)
    blocks = f", means over blocks of {block} tokens" if block > 1 else ""
    figure.suptitle(
        heading(
            group,
            f": plan of {example.layer}, head {example.head}, one test sample{blocks}",
        ),
        fontsize=10,
    )
    return figure


def fidelity(group: Group) -> Figure:
    """Draw held-out R^2, row distance and column error by layer: a dot per head, a bar per mean."""
    rows = [row for record in group.records for row in record.fidelity]
    layers = list(dict.fromkeys(row.layer for row in rows))
    panels = (
        ("r_squared_held_out", "R² of the dual"),
        ("l1_row_distance", "L1 row distance"),
        ("column_error", "column error (hollow: teacher)"),
    )
    figure, all_axes = subplots(8, 2.9, ncols=3)
    for axes, (name, title) in zip(all_axes, panels, strict=True):
        for number, layer in enumerate(layers):
            mine = [row for row in rows if row.layer == layer]
            values = [x for row in mine if (x := getattr(row, name)) is not None]
            if values:
                axes.bar(number, statistics.fmean(values), color=ORANGE, alpha=0.35)
                axes.scatter([number] * len(values), values, s=10, color=ORANGE)
            if name == "column_error":
                known = [row.teacher_column_error for row in mine]
                teacher = [value for value in known if value is not None]
                axes.scatter(
                    [number + 0.25] * len(teacher),
                    teacher,
                    s=12,
                    facecolors="none",
                    edgecolors=BLACK,
                )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("layer")
        axes.set_xticks(range(len(layers)))
        axes.grid(alpha=0.3, axis="y")
    figure.suptitle(heading(group, ": fidelity on held-out samples, one dot per head"), fontsize=10)
    return figure
