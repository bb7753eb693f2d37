"""Fidelity of the compiled layers on held-out samples."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asap_exp.core.records.words import imitation_word, other_label
from asap_exp.report import palette
from asap_exp.report.drawing import heading, subplots
from asap_exp.report.groups import Group

PANELS = {
    "r_squared_held_out": "R² of the dual (1 is best)",
    "l1_row_distance": "L1 row distance (0 is best)",
    "column_error": "column error",
}
SHIFT = 0.16
"""Distance from the middle of a layer to the dots of ASAP and of its teacher."""


def fidelity(group: Group) -> Figure:
    """Draw held-out R², row distance and column error by layer: a dot per head, a line per mean.

    A panel that nothing is known of is left out: an imitation has no dual.
    """
    rows = [row for record in group.records for row in record.fidelity]
    layers = list(dict.fromkeys(row.layer for row in rows))
    known = {
        name: title
        for name, title in PANELS.items()
        if any(getattr(row, name) is not None for row in rows)
    }
    figure, all_axes = subplots(8, 3.1, ncols=len(known), squeeze=False)
    about = group.first.artifact
    method = imitation_word(about) if about.imitates else other_label(about) or "ASAP"
    for axes, (name, title) in zip(all_axes[0], known.items(), strict=True):
        compared = name == "column_error"
        for number, layer in enumerate(layers):
            mine = [row for row in rows if row.layer == layer]
            values = [x for row in mine if (x := getattr(row, name)) is not None]
            draw(axes, number - SHIFT * compared, values, palette.ORANGE, method, filled=True)
            if compared:
                of_teacher = [x for row in mine if (x := row.teacher_column_error) is not None]
                draw(axes, number + SHIFT, of_teacher, palette.BLACK, "teacher", filled=False)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("layer")
        axes.set_xticks(range(len(layers)))
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.grid(alpha=0.3, axis="y")
        if name != "r_squared_held_out":
            axes.set_ylim(bottom=0)
        if compared:
            handles, labels = axes.get_legend_handles_labels()
            once = dict(zip(labels, handles, strict=True))
            axes.legend(once.values(), once.keys(), fontsize=8, frameon=False)
    figure.suptitle(heading(group, ": fidelity on held-out samples, one dot per head"), fontsize=10)
    return figure


def draw(
    axes: Axes, x: float, values: Sequence[float], colour: str, label: str, *, filled: bool
) -> None:
    """Draw a dot per value and a line through their mean."""
    if values:
        mean = statistics.fmean(values)
        face = colour if filled else "none"
        dots = axes.scatter([x] * len(values), values, s=14, facecolors=face, edgecolors=colour)
        dots.set_label(label)
        axes.plot([x - SHIFT, x + SHIFT], [mean, mean], color=colour, linewidth=1.6)
