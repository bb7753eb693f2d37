"""Behaviour of plans in tables and figures: averages over seeds and maps, styles, texts."""

from copy import deepcopy
from typing import Any

import pytest

from asap_exp.report.behaviour import COLUMNS, MEASURES, behaviours, is_measured, table
from asap_exp.report.behaviour_figure import FURTHER, behaviour, styles
from asap_exp.report.drawing import image
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group
from asap_exp.report.markdown import tables_markdown
from tests.records import published, typed, with_seed

KEYS = ("teacher", "asap", "softmax_trained")


def layer(path: str, largest: float) -> dict[str, Any]:
    return {
        "layer": path,
        "largest_column": largest,
        "largest_column_of_all": 2 * largest,
        "column_error": 0.25,
        "entropy": 1.5,
        "relative_entropy": 0.5,
    }


def with_behaviour(
    record: dict[str, Any], largest: float, corrupted: float | None = 0.5
) -> dict[str, Any]:
    """Of every whole model: column sums from `largest` on, one more a layer."""
    paths = [f"blocks.{n}.attn" for n in range(record["num_layers"])]
    changes = (
        [] if corrupted is None else [("noise", 1), ("noise", 5), ("blur", 1), ("contrast", 1)]
    )
    rows = [
        {
            "key": key,
            "layers": [layer(path, largest + n) for n, path in enumerate(paths)],
            "ranks": [float(n + 1) for n in range(len(paths) + 1)],
            "corrupted": [{"name": n, "severity": s, "accuracy": corrupted} for n, s in changes],
        }
        for key in (row["key"] for row in record["rows"])
        if key in KEYS
    ]
    return deepcopy(record) | {"behaviour": {"samples": 8, "rows": rows}}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return published("digits-vit-sinkhorn")


@pytest.fixture
def seeds(plain: dict[str, Any]) -> Group:
    first = with_behaviour(with_seed(plain, 0, 0.9), 2.0)
    second = with_behaviour(with_seed(plain, 1, 0.7), 4.0)
    return Group("digits", [typed(first), typed(second), typed(with_seed(plain, 2))])


def test_a_published_record_has_none(plain: dict[str, Any]) -> None:
    group = Group("digits", [typed(plain)])
    assert not is_measured(group)
    assert "behaviour" not in group_figures(group)
    assert "What the plans do" not in tables_markdown([group])


def test_seeds_that_have_it_are_averaged(seeds: Group) -> None:
    found = {each.key: each for each in behaviours(seeds)}
    assert list(found) == list(KEYS)
    assert [key for key, each in found.items() if each.compiled] == ["asap"]
    teacher = found["teacher"]
    depth = seeds.first.num_layers
    first = teacher.layers["largest_column"][0]
    assert (first.mean, first.std) == (3.0, pytest.approx(2**0.5))
    assert teacher.means["largest_column"].mean == pytest.approx(3 + (depth - 1) / 2)
    assert teacher.means["largest_column_of_all"].mean == pytest.approx(2 * (3 + depth - 1))
    assert [rank.mean for rank in teacher.ranks] == [n + 1 for n in range(depth + 1)]
    drop = teacher.drops[0]
    assert (drop.name, drop.severity) == ("noise", 1)
    assert drop.points.mean == pytest.approx(30)
    assert drop.points.std == pytest.approx(20 / 2**0.5)
    assert drop.accuracy.mean == pytest.approx(0.5)


def test_table_has_a_column_for_each_number(seeds: Group) -> None:
    titles, lines = table(seeds)
    assert COLUMNS.keys() == MEASURES.keys()
    assert titles[-4:-1] == ["noise 1: drop", "noise 5: drop", "blur 1: drop"]
    assert all(len(line) == len(titles) for line in lines)
    teacher = dict(zip(titles, lines[0], strict=True))
    assert teacher["noise 1: drop"] == "30.0 ± 14.1"
    assert teacher["accuracy %"] == "80.00 ± 14.14"
    depth = seeds.first.num_layers
    assert teacher["effective rank"] == f"{depth + 1:.1f} ± 0.0 (1.0)"


def test_maps_that_differ_in_their_seed_are_one_method(plain: dict[str, Any]) -> None:
    changed = with_behaviour(plain, 2.0)
    behaviour_rows = changed["behaviour"]["rows"]
    row = next(row for row in changed["rows"] if row["key"] == "asap")
    changed["rows"].append({**row, "key": "map_0", "label": "ASAP, 32 slices, seed 1"})
    changed["maps"] = {
        key: {"key": "map_x", "label": "ASAP, 32 slices"} for key in ("asap", "map_0")
    }
    changed.pop("right", None)
    behaviour_rows.append(
        {
            **deepcopy(behaviour_rows[1]),
            "key": "map_0",
            "layers": [{**x, "largest_column": 10.0} for x in behaviour_rows[1]["layers"]],
        }
    )
    found = behaviours(Group("digits", [typed(changed)]))
    (mine,) = (each for each in found if each.key == "map_x")
    assert mine.layers["largest_column"][0].mean == 6.0
    assert "asap" not in [each.key for each in found]


def test_texts_have_the_upper_row_alone(plain: dict[str, Any]) -> None:
    images = Group("digits", [typed(with_behaviour(plain, 2.0))])
    texts = Group("digits", [typed(with_behaviour(plain, 2.0, None))])
    assert [len(behaviour(group).axes) for group in (images, texts)] == [6, 3]
    assert "accuracy %" not in table(texts)[0]
    assert image(behaviour(texts)).startswith(b"\x89PNG")


def test_panels_keep_their_height_below_a_long_legend(plain: dict[str, Any]) -> None:
    """`maps=all` measures every map of a teacher."""
    heights = []
    for further in (0, 20):
        changed = with_behaviour(plain, 2.0)
        row = next(row for row in changed["rows"] if row["key"] == "asap")
        measured = changed["behaviour"]["rows"]
        for number in range(further):
            label = f"ASAP, {number} of 99 slices + query, adaptive and coarse (4 tokens) features"
            changed["rows"].append({**row, "key": f"map_{number}", "label": label})
            measured.append({**deepcopy(measured[1]), "key": f"map_{number}"})
        changed["maps"] = {
            r["key"]: {"key": r["key"], "label": r["label"]}
            for r in changed["rows"]
            if r["key"] == "asap" or r["key"].startswith("map_")
        }
        changed.pop("right", None)
        figure = behaviour(Group("digits", [typed(changed)]))
        figure.draw_without_rendering()
        heights.append(min(axes.get_window_extent().height for axes in figure.axes))
    assert heights[1] > 0.8 * heights[0] > 0


def test_every_method_looks_different(seeds: Group) -> None:
    teacher, *_ = behaviours(seeds)
    many = [teacher] * (3 * len(FURTHER) + 1)
    chosen = styles(many)
    assert len({(s.colour, s.marker, s.line) for s in chosen}) == len(many)
