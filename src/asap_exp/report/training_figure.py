"""Training curves of a group: loss, validation, and how its plans change."""

import statistics
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from asap_exp.core.records.evaluation import Curve
from asap_exp.report import palette
from asap_exp.report.drawing import heading, subplots
from asap_exp.report.groups import Group
from asap_exp.report.pareto import quality

PLANS = {"column_error": "column error of the plans", "largest_logit": "largest logit"}
"""Numbers logged for each layer, and their axes."""


def training(group: Group) -> Figure:
    """Draw the losses and, where they were logged, validation and the state of the plans."""
    column = quality(group)
    curves = [record.curves for record in group.records]
    logged = {name for each in curves for row in each for name in row}
    # A perplexity is that of the validation loss, and has a panel of its own.
    both = "val/loss" in logged and not column.lower_is_better
    words = "loss" if both else "training loss (as trained)"
    panels = [(["train/loss_epoch"], 1.0, words)]
    validated = f"val/{column.key}" in logged
    if validated:  # a final recipe trains on the validation rows too
        panels.append(([f"val/{column.key}"], column.scale, f"validation {column.title}"))
    for what, words in PLANS.items():
        if layers := sorted(name for name in logged if name.endswith(f"/{what}")):
            panels.append((layers, 1.0, words))
    width = min(len(panels), 2)
    height = -(-len(panels) // width)
    figure, grid = subplots(8, 2.9 * height, nrows=height, ncols=width, squeeze=False)
    for axes, (names, scale, words) in zip(grid.flat, panels, strict=False):
        for number, name in enumerate(names):
            draw(axes, curves, name, scale, layer=(number, len(names)))
        if words == "loss":
            draw(axes, curves, "val/loss", 1.0, layer=(0, 1), colour=palette.ORANGE)
            axes.legend(
                axes.lines[:: len(axes.lines) // 2], ["training (as trained)", "validation"]
            )
        if len(names) > 1:
            axes.legend(title="layer", fontsize=8, title_fontsize=8, ncols=2)
        judged = names == [f"val/{column.key}"]
        over_epochs(axes, words, logarithmic=judged and column.lower_is_better)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    seeds = len(group.records)
    more = f"; mean of {seeds} seeds" if seeds > 1 else ""
    more += "" if validated else "; trained on train+val, no validation"
    figure.suptitle(heading(group, more), fontsize=10)
    return figure


def over_epochs(axes: Axes, words: str, *, logarithmic: bool) -> None:
    """Label the axes of a quantity over the epochs; one that falls by factors `logarithmic`."""
    axes.set_ylabel(words)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.grid(alpha=0.3)


def draw(
    axes: Axes,
    curves: Iterable[Curve],
    name: str,
    scale: float,
    *,
    layer: tuple[int, int],
    colour: str = palette.BLUE,
) -> Line2D:
    """Draw the mean over the seeds and, if there is but one curve per seed, each seed thin.

    `layer` is the place of the curve among several: deeper layers are darker.
    Returns the line of the mean.
    """
    number, of = layer
    seeds = [
        {row["epoch"] + 1: scale * row[name] for row in each if name in row} for each in curves
    ]
    epochs = sorted({epoch for seed in seeds for epoch in seed})
    means = [statistics.fmean(seed[e] for seed in seeds if e in seed) for e in epochs]
    alpha = 1.0 if of == 1 else 0.25 + 0.75 * number / (of - 1)
    (mean,) = axes.plot(epochs, means, color=colour, alpha=alpha, label=f"{number}")
    if of == 1 and len(seeds) > 1:
        for seed in seeds:
            axes.plot(list(seed), list(seed.values()), color=colour, alpha=0.3, linewidth=0.7)
    return mean
