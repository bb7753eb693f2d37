"""Column error of every layer: in the record, averaged over seeds, in tables and on the page."""

from copy import deepcopy
from typing import Any

import pytest

from asap_exp.core.errors import UserError
from asap_exp.report.groups import Group
from asap_exp.report.layer_columns import MEANING, TITLE, is_measured, table
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.notes import remarks
from asap_exp.report.page import html_page
from tests.records import published, typed, with_seed

PLAIN = published("digits-vit-sinkhorn")
PATHS = [f"blocks.{number}.attn" for number in range(PLAIN["num_layers"])]


def with_columns(record: dict[str, Any], factor: float) -> dict[str, Any]:
    """Of every row: its own error, a little less in the first layer and more in the last."""
    changed = deepcopy(record)
    for row in changed["rows"]:
        mean, largest = row["column_error"], row["largest_column_error"]
        if row["group"] == "baseline":
            continue
        row["column_error"], row["largest_column_error"] = factor * mean, factor * largest
        places = range(len(PATHS))
        shares = [0.5 + number / (len(PATHS) - 1) for number in places]
        row["layer_columns"] = [
            {"layer": PATHS[n], "mean": shares[n] * factor * mean, "largest": factor * largest}
            for n in places
        ]
    return changed


def of_teacher(group: Group) -> list[str]:
    (first, *cells), *_ = table(group)[1]
    assert first == "Sinkhorn teacher, T = 20"
    return cells


def test_older_records_have_none() -> None:
    group = Group("digits", [typed(PLAIN)])
    assert not is_measured(group)
    assert TITLE not in tables_markdown([group])


def test_seeds_are_averaged_and_the_largest_is_of_all() -> None:
    records = [typed(with_columns(with_seed(PLAIN, seed), 1.0 + seed)) for seed in (0, 1)]
    group = Group("digits", [*records, typed(with_seed(PLAIN, 2))])
    assert is_measured(group)
    titles, _ = table(group)
    assert titles == ["method", *PATHS]
    teacher = records[0].rows[0]
    first, second = (0.5 * factor * teacher.column_error for factor in (1, 2))
    mean, deviation = (first + second) / 2, abs(first - second) / 2**0.5
    largest = 2 * teacher.largest_column_error
    cells = of_teacher(group)
    assert cells[0] == f"{mean:.3f} ± {deviation:.3f} ({largest:.3f})"
    assert float(cells[-1].split()[0]) == pytest.approx(3 * mean, abs=1e-3)


def test_one_compiled_layer_alone_has_no_line() -> None:
    record = with_columns(PLAIN, 1.0)
    names = [line[0] for line in table(Group("digits", [typed(record)]))[1]]
    assert "ASAP" in " ".join(names)
    assert not any("alone" in name for name in names)
    assert any("alone" in row["label"] for row in record["rows"])


def test_cell_without_a_number_is_empty() -> None:
    record = with_columns(PLAIN, 1.0)
    record["rows"][0]["layer_columns"][1] = {"layer": PATHS[1], "mean": None, "largest": None}
    assert of_teacher(Group("digits", [typed(record)]))[1] == ""


def test_they_are_in_tables_and_on_the_page() -> None:
    group = Group("digits", [typed(with_columns(PLAIN, 1.0))])
    text = tables_markdown([group])
    assert MEANING in text
    assert "| blocks.0.attn |" in text
    page = html_page([group], {group.slug: {}})
    assert TITLE in page
    assert "blocks.0.attn" in page


def test_mean_over_layers_is_that_of_the_row() -> None:
    record = with_columns(PLAIN, 1.0)
    record["rows"][0]["layer_columns"][0]["mean"] += 0.1
    with pytest.raises(UserError, match=r"column_error=.* of teacher is not the mean .* of layer"):
        typed(record)


@pytest.mark.parametrize(("more", "said"), [(0.09, False), (0.11, True)])
def test_a_method_whose_columns_are_too_uneven_is_not_called_doubly_stochastic(
    more: float, said: bool
) -> None:
    record = deepcopy(PLAIN)
    teacher, asap = (
        next(row for row in record["rows"] if row["key"] == key) for key in ("teacher", "asap")
    )
    teacher["column_error"] = 0.2
    asap["column_error"] = 0.2 + more
    (note,) = [x for x in remarks(Group("digits", [typed(record)])) if "stochastic" in x] or [""]
    assert (note != "") == said
    if said:
        assert note.endswith("the teacher's (0.2000): ASAP, all layers 0.3100.")
