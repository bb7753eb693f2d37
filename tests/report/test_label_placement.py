"""Labels of crowded points: where they land."""

import itertools

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from asap_exp.report.label_placement import Label, place_labels

CROWD = [(1.0, 0.50), (1.02, 0.50), (1.03, 0.51), (1.02, 0.52), (2.0, 0.9), (2.0, 0.1)]
"""Four points closer together than their labels are wide, and two in corners of the axes."""


@pytest.fixture
def axes() -> Axes:
    _, axes = plt.subplots(figsize=(4, 3), layout="constrained")
    axes.plot(*zip(*CROWD, strict=True), marker="o", markersize=6, linestyle="-")
    place_labels(axes, [Label(f"point {n}", x, y, "black") for n, (x, y) in enumerate(CROWD)])
    return axes


def texts(axes: Axes) -> dict[str, Bbox]:
    found = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    axes.get_figure(root=True).draw_without_rendering()
    return {text.get_text(): text.get_window_extent() for text in found}


def test_labels_are_apart_and_inside(axes: Axes) -> None:
    boxes = texts(axes)
    assert list(boxes) == [f"point {n}" for n in range(len(CROWD))]
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(other)
    inside = axes.get_window_extent()
    for box in boxes.values():
        assert Bbox.intersection(box, inside).size == pytest.approx(box.size)


def test_no_label_covers_a_point(axes: Axes) -> None:
    points = axes.transData.transform(CROWD)
    for box in texts(axes).values():
        assert not box.count_contains(points)


def test_label_far_from_its_point_has_a_line_to_it(axes: Axes) -> None:
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    lined = {label.xy for label in labels if label.arrow_patch is not None}
    boxes = texts(axes).values()
    for (x, y), box in zip(CROWD, boxes, strict=True):
        point = axes.transData.transform((x, y))
        away = point.clip(box.p0, box.p1) - point
        assert ((x, y) in lined) == (abs(away).max() * 72 / axes.figure.dpi > 13)
    assert 0 < len(lined) < len(CROWD)
