"""Words beside the points of a figure, where they cover neither a point nor one another."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.transforms import Bbox

DISTANCES = (6, 14, 24, 36)
"""How far from its point a label may stand, in printer's points: the nearest free one is taken."""
LEADER = 14
"""From this distance on a thin line leads from the label to its point."""
DIRECTIONS = ((1, -1), (1, 1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0, -1), (0, 1))
"""To the right (1) or left (-1), and up (1) or down (-1), in the order of preference."""
STEP = 4.0
"""Pixels between the samples of a drawn line."""


class Label(NamedTuple):
    """What stands beside the point `(x, y)`, given in the units of the axes."""

    words: str
    x: float
    y: float
    colour: str


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes the labels of `axes`, which must have its final limits, titles and legends.

    Each takes the first place inside the axes that covers no point, line or label before it; where
    there is none, the one that covers least.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout decides what is how far apart
    pixels = figure.dpi / 72
    inside, taken = axes.get_window_extent(), list(occupied(axes, pixels))
    for label in labels:
        text = axes.annotate(
            label.words,
            (label.x, label.y),
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=label.colour,
        )
        text.set_in_layout(False)
        size = np.asarray(text.get_window_extent().size)
        point = axes.transData.transform((label.x, label.y))
        places = [
            (far, box_beside(point, size, far * pixels, way))
            for far in DISTANCES
            for way in DIRECTIONS
        ]
        far, box = min(places, key=lambda place: cost(place[1], inside, taken))
        taken.append(box)
        text.xyann = tuple((box.p0 - point) / pixels)
        if far >= LEADER:
            end = tuple((nearest(box, point) - point) / pixels)
            leader = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkA": 0}
            axes.annotate(
                "", (label.x, label.y), end, textcoords="offset points", arrowprops=leader
            ).set_in_layout(False)


def box_beside(point: np.ndarray, size: np.ndarray, far: float, way: tuple[int, int]) -> Bbox:
    """A box of `size` whose near side or corner is `far` from `point`; everything in pixels."""
    gap = far * np.array([way[0], way[1] / 2 if way[0] else way[1]])
    corner = point + gap - size * (1 - np.array(way)) / 2
    return Bbox([corner, corner + size])


def nearest(box: Bbox, point: np.ndarray) -> np.ndarray:
    return np.clip(point, box.p0, box.p1)


def occupied(axes: Axes, pixels: float) -> Iterator[Bbox]:
    """Boxes around every marker and along every line and error bar of the axes."""
    for line in axes.lines:
        points = line.get_transform().transform(line.get_xydata())
        if line.get_linestyle() != "None":
            yield from along(points)
        if line.get_marker() != "None":
            yield from squares(points, line.get_markersize() / 2 * pixels)
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            for segment in bars.get_segments():
                yield from along(bars.get_transform().transform(segment))


def along(points: np.ndarray) -> Iterator[Bbox]:
    for one, other in itertools.pairwise(points):
        samples = 2 + int(np.hypot(*(other - one)) / STEP)
        yield from squares(np.linspace(one, other, samples), 1.0)


def squares(points: np.ndarray, radius: float) -> Iterator[Bbox]:
    return (Bbox([point - radius, point + radius]) for point in points)


def cost(box: Bbox, inside: Bbox, taken: Sequence[Bbox]) -> float:
    """The area of `box` that lies outside the axes or on something else, in square pixels."""
    lost = box.width * box.height - shared(box, inside)
    return lost + sum(shared(box, other) for other in taken)


def shared(one: Bbox, other: Bbox) -> float:
    overlap = Bbox.intersection(one, other)
    return 0.0 if overlap is None else float(overlap.width * overlap.height)
