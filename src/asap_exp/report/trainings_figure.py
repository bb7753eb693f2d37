"""Learning curves of trainings on one data set, a colour per recipe."""

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asap_exp.core.escaping import on_figure
from asap_exp.report import palette
from asap_exp.report.drawing import subplots
from asap_exp.report.training_figure import draw, over_epochs
from asap_exp.report.trainings import Comparison

COLOURS = (
    palette.BLUE,
    palette.ORANGE,
    palette.GREEN,
    palette.PINK,
    palette.LIGHT_BLUE,
    palette.DARK_YELLOW,
    palette.BLACK,
    palette.GREY,
)
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
"""Dashes tell recipes of one colour apart."""

MOST = len(COLOURS) * len(DASHES)
"""Recipes that a figure tells apart; of more, the best are drawn."""


def learning_curves(found: Comparison) -> Figure | None:
    """Draw training loss and validation over the epochs; None if no run has logged an epoch."""
    column, drawn = found.column, found.trained[:MOST]
    curves = [[record.curves for record in trained.records] for trained in drawn]
    logged = {name for each in curves for seed in each for row in seed for name in row}
    panels = [("train/loss_epoch", 1.0, "training loss (as trained)")]
    panels.append((f"val/{column.key}", column.scale, f"validation {column.title}"))
    panels = [panel for panel in panels if panel[0] in logged]
    if not panels:
        return None
    lines = len(drawn) if len(drawn) > 1 else 0
    height = 2.9 + 0.22 * lines
    figure, axes = subplots(8, height, ncols=len(panels), squeeze=False)
    handles = []
    for place, (name, scale, words) in enumerate(panels):
        panel: Axes = axes[0, place]
        for number, seeds in enumerate(curves):
            colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS)]
            mean = draw(panel, seeds, name, scale, layer=(0, 1), colour=colour)
            mean.set_linestyle(dash)
            if not place:
                handles.append(mean)
        over_epochs(panel, words, logarithmic=name.startswith("val/") and column.lower_is_better)
    alone = f": {drawn[0].label}" if len(drawn) == 1 else ""
    more = f"; the best {MOST} of {len(found.trained)}" if len(found.trained) > MOST else ""
    seeds_of = max(len(trained.records) for trained in drawn)
    more += "; thick: means over the seeds" if seeds_of > 1 else ""
    figure.suptitle(on_figure(f"Trainings, {found.title}{alone}{more}", 90), fontsize=10)
    if lines:
        labels = [on_figure(trained.label, 100) for trained in drawn]
        figure.legend(handles, labels, loc="outside lower center", fontsize=8)
    return figure
