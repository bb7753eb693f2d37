"""Example plan of the teacher, of ASAP and of row softmax, each with its column sums."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from asap_exp.core.escaping import on_figure
from asap_exp.core.records.words import teacher_word
from asap_exp.report import palette
from asap_exp.report.drawing import heading, subplots
from asap_exp.report.groups import Group
from asap_exp.report.headline import headline

DRAWN = ("teacher", "asap", "softmax")


def plans(group: Group) -> Figure:
    """Draw the plans on one scale of colours, column sums below; row sums are 1 in all of them.

    Both scales are square roots: most entries are tiny, and softmax has columns of sum 20.
    """
    example = group.first.plans
    drawn = {name: np.array(getattr(example.plans, name)) for name in DRAWN}
    block = example.block
    of = "block of " if block > 1 else ""
    top = float(np.quantile(drawn["teacher"], 0.995))
    titles = {
        "teacher": teacher_word(group.first.artifact),
        "asap": headline(group).name,
        "softmax": "row softmax",
    }
    norm = PowerNorm(0.5, vmin=0, vmax=top)
    sums = {name: plan.sum(axis=0) for name, plan in drawn.items()}
    highest = max(2.0, *(float(each.max()) for each in sums.values()))
    figure, grid = subplots(8, 4, nrows=2, ncols=3, sharex=True, height_ratios=(4, 1))
    for (upper, lower), (name, plan) in zip(grid.T, drawn.items(), strict=True):
        image = upper.imshow(plan, cmap="magma", norm=norm, aspect="auto", interpolation="none")
        upper.set_title(on_figure(titles[name], 36), fontsize=10)
        for axis in (upper.xaxis, upper.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        upper.tick_params(labelsize=8)
        draw_sums(lower, sums[name], highest)
        lower.set_xlabel(f"{of}key token", fontsize=9)
        if name == "teacher":
            upper.set_ylabel(f"{of}query token", fontsize=9)
            lower.set_ylabel("column\nsum", fontsize=9)
        else:
            upper.tick_params(labelleft=False)
            lower.tick_params(labelleft=False)
    bar = figure.colorbar(image, ax=grid[0, :], extend="max", aspect=25, pad=0.01)
    bar.set_label("attention", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    blocks = f", means over blocks of {block} tokens" if block > 1 else ""
    where = f"{layer_name(example.layer)}, head {example.head}"
    figure.suptitle(heading(group, f": {where}, one test sample{blocks}"), fontsize=10)
    return figure


def draw_sums(axes: Axes, sums: np.ndarray, highest: float) -> None:
    """Draw a bar per column, and the sum that a doubly-stochastic plan has."""
    axes.bar(np.arange(len(sums)), sums, color=palette.ORANGE, width=1.0)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set_ylim(0, 1.05 * highest)
    axes.yaxis.set_major_locator(FixedLocator([0, 1, *([round(highest)] if highest > 3 else [2])]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)


def layer_name(path: str) -> str:
    """Return "layer 2" for the path `blocks.2.attn`; a path without a number is its own name."""
    found = re.search(r"\d+", path)
    return f"layer {found[0]}" if found else path
