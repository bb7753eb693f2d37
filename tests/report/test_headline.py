"""One name per method everywhere, and a headline of means over all seeds that there are."""

import re

import pytest

from asap_exp.report.accuracy_figure import FAMILIES, PALE, SOFTMAX_TEACHER, accuracy_latency
from asap_exp.report.averages import main_rows
from asap_exp.report.captions import caption
from asap_exp.report.documents import headline_cells
from asap_exp.report.groups import Group, grouped
from asap_exp.report.headline import compared_rows, headline
from asap_exp.report.markdown import overview, tables_markdown
from asap_exp.report.names import NAMES, NO_SLICES, method_name
from asap_exp.report.page_tables import result_table
from asap_exp.report.paper_claims import speed_of
from asap_exp.report.pareto import points
from asap_exp.report.summary_figure import summary
from tests.records import PUBLISHED, choosing, published, typed, with_seed, without_maps

OLD_NAMES = ("query features, no slices", "without slices", "trained alike", "bigrams")


def only(*names: str) -> Group:
    (group,) = grouped(typed(published(name)) for name in names)
    return group


@pytest.mark.parametrize(
    ("key", "label", "name"),
    [
        ("control_query", "control: query features, no slices", "control: no slices"),
        ("control_zero", "control: ASAP, all weights zero, refine 1", "control: all weights zero"),
        ("softmax_trained", "softmax, trained alike", "softmax, same recipe"),
        ("truncated_3", "Sinkhorn, T' = 3", "Sinkhorn, T' = 3"),
        (
            "map_0_query",
            "control: query features, refine 1 relaxed, ridge, 32 samples, seed 0",
            "control: no slices, refine 1 relaxed, ridge, 32 samples, seed 0",
        ),
        (
            "map_a",
            "control: by layer ASAP; Sinkhorn, T' = 2, without their slices",
            "control: no slices, by layer ASAP; Sinkhorn, T' = 2",
        ),
        ("map_1", "ASAP, 2 slices, refine 0, ridge, 32 samples", None),
    ],
)
def test_a_method_has_one_name_whatever_its_label(key: str, label: str, name: str | None) -> None:
    assert method_name(key, label) == (name or label)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["agnews", "imdb", "cifar-vit-sinkhorn-f9c05404-s0-e7c8e40c"])
def test_tables_and_figures_use_the_same_names(name: str) -> None:
    group = only(name)
    text = tables_markdown([group])
    assert not [old for old in OLD_NAMES if old in text]
    tables = {
        cell.strip()
        for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)
        for cell in row.split("|")
    }
    controls = {cell for cell in tables if cell.startswith("control")}
    assert controls <= set(NAMES.values())
    (legend,) = accuracy_latency(group).legends
    drawn = {entry.get_text() for entry in legend.get_texts()}
    known = {family.name for family in FAMILIES.values()} | {PALE}
    assert drawn - known <= tables
    assert {each for each in drawn if each.startswith("control")} <= set(NAMES.values())


def test_families_of_one_figure_look_different() -> None:
    """Of a softmax teacher there is neither a Sinkhorn teacher nor ASAP."""
    of_sinkhorn = [f for kind, f in FAMILIES.items() if kind not in (SOFTMAX_TEACHER, "imitation")]
    assert len({(f.colour, f.marker) for f in of_sinkhorn}) == len(of_sinkhorn)


def test_labels_of_records_are_left_as_they_are() -> None:
    labels = {row["label"] for row in published("imdb")["rows"]}
    assert "control: query features, no slices" in labels


def test_headline_of_one_model_is_the_mean_over_its_maps_and_says_so() -> None:
    group = only("imdb")
    found = headline(group)
    (point,) = [p for p in points(group) if p.key == group.first.maps["asap"].key]
    assert found.asap.n == point.n == 3
    assert found.asap["accuracy"] == point["accuracy"]
    assert found.asap.label == "ASAP, all layers"
    assert (found.seeds, found.title_words) == ("1 (3 maps)", "1 seed, 3 maps")
    title, teacher, asap, _, _ = headline_cells(group)
    assert title.endswith("; 1 seed, 3 maps")
    assert asap == "91.00 ± 0.02"
    assert f"| {teacher} | {asap} |" in overview([group])[0][-1]
    assert result_table([group]).bodies[0].lines[0].cells[2].text == "91.00"


def test_budget_that_chose_softmax_in_every_layer_is_not_called_asap() -> None:
    value = choosing(without_maps(published("imdb")), "softmax")
    (row,) = (row for row in value["rows"] if row["key"] == "asap")
    row |= {"label": "softmax by budget, all layers", "group": "budget"}
    (group,) = grouped([typed(value)])
    assert headline(group).name == "softmax by budget"
    assert caption(group.first).endswith(" Softmax by budget.")
    titles, _, cells = overview([group])[0]
    assert "ASAP" not in titles
    assert "| compiled |" in titles
    assert "| softmax by budget |" in cells
    table = result_table([group])
    assert [heading.title for heading in table.headings][2] == "compiled"
    assert table.bodies[0].lines[0].cells[0].note == "softmax by budget"
    assert "softmax by budget, all layers" in methods_of(group)
    assert speed_of(group) is None
    (legend,) = accuracy_latency(group).legends
    drawn = {entry.get_text() for entry in legend.get_texts()}
    assert "chosen by budget, no ASAP" in drawn
    assert "ASAP" not in drawn


def methods_of(group: Group) -> list[str]:
    return [row.name for row in main_rows(group)]


def test_headline_of_several_models_is_the_mean_over_the_models() -> None:
    names = sorted(file.stem for file in PUBLISHED.glob("agnews-*.json"))
    found = headline(only(*names))
    assert found.asap.n == found.teacher.n == 3
    assert (found.seeds, found.title_words) == ("3", "3 seeds")


def test_headline_without_other_maps_is_that_of_the_own_map() -> None:
    digits = published("digits-vit-sinkhorn-18c43027-s0")
    (one,) = grouped([typed(digits)])
    assert headline(one).title_words == "1 seed"
    (two,) = grouped(map(typed, (digits, with_seed(digits, 7))))
    assert headline(two).title_words == "2 seeds"


def test_each_method_is_compared_once() -> None:
    rows = compared_rows(only("imdb"))
    own = only("imdb").first.maps
    assert not {own["asap"].key, own["control_query"].key} & rows.keys()
    assert rows["control_query"].name == NO_SLICES
    assert rows["control_query"].n == 3


@pytest.mark.slow
def test_summary_labels_its_truncations() -> None:
    groups = grouped(
        typed(published(name))
        for name in ("cifar-vit-sinkhorn-4fad3dd8", "cifar-vit-sinkhorn-cd54989a")
    )
    figure = summary(groups)
    assert figure is not None
    words = figure.get_supxlabel().splitlines()[1:]
    assert words == ["not measured: softmax, same recipe (at 1,024 tokens)"]
    by_length = sorted(groups, key=lambda g: g.first.training.tokens or 0)
    for axes, group in zip(figure.axes, by_length, strict=True):
        labels = {int(text.get_text()) for text in axes.texts}
        measured = {
            int(row.key.rsplit("_", 1)[1])
            for row in group.first.rows
            if row.group in ("truncated", "relaxed")
        }
        assert len(labels) >= 4
        assert labels <= measured
