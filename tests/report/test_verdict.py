"""The verdict in sentences: what ASAP costs and gains, its rival, and which of the two to use."""

from types import SimpleNamespace
from typing import Any

import pytest

from asap_exp.core.records.row import COLUMN
from asap_exp.report.groups import Group, grouped
from asap_exp.report.headline import compared_rows, headline
from asap_exp.report.pareto import quality
from asap_exp.report.verdict import honest_rival, noise, truncations, verdict, where_it_changes
from tests.records import published, typed

CIFAR_64 = "cifar-vit-sinkhorn-f9c05404-s0-e7c8e40c"


def group_of(record: dict[str, Any]) -> Group:
    (group,) = grouped([typed(record)])
    return group


def row(record: dict[str, Any], key: str) -> dict[str, Any]:
    return next(row for row in record["rows"] if row["key"] == key)


def timed(record: dict[str, Any], key: str, ms: float, accuracy: float) -> None:
    """Set the latency and the accuracy of a row."""
    found = row(record, key)
    found["model_ms"] = {"median": ms, "q1": ms, "q3": ms}
    found["accuracy"] = accuracy


@pytest.fixture
def record() -> dict[str, Any]:
    """Return a record whose truncations are all twice as slow as ASAP, and worse."""
    record = published(CIFAR_64)
    record["maps"] = {}
    record["rows"] = [r for r in record["rows"] if not r["key"].startswith("map_")]
    for each in record["rows"]:
        if each["group"] in ("truncated", "relaxed"):
            timed(record, each["key"], 4.0, 0.3)
    timed(record, "teacher", 10.0, 0.7)
    timed(record, "asap", 2.0, 0.65)
    return record


def test_asap_is_compared_with_its_teacher_first(record):
    first, *_ = verdict(group_of(record))
    assert first == (
        "ASAP runs the model 5.00x as fast and has 65.00 % accuracy; "
        "its teacher has 70.00 % accuracy."
    )


def test_no_truncation_is_as_fast(record):
    *_, rival, use = verdict(group_of(record))
    assert "2.50x as fast, with 30.00 % accuracy" in rival
    assert use == "At 64 tokens, on this machine, no truncation is as fast as ASAP."


def test_a_faster_truncation_is_less_accurate(record):
    timed(record, "truncated_2", 1.0, 0.63)
    timed(record, "truncated_1", 0.5, 0.5)
    *_, rival, use = verdict(group_of(record))
    assert rival.startswith("The truncation to compare it with is Sinkhorn, T' = 2: 10.00x as fast")
    assert use == (
        "At 64 tokens, on this machine, ASAP is slower than it, and better; "
        "no truncation that was measured is as good."
    )
    timed(record, "truncated_10", 8.0, 0.66)
    timed(record, "truncated_5", 5.0, 0.65)
    *_, use = verdict(group_of(record))
    assert use.endswith(
        "and better; at least as good is Sinkhorn, T' = 5: 2.00x as fast, with 65.00 % accuracy."
    )


def with_test_rows(record: dict[str, Any], rows: int) -> None:
    record["test"]["rows"] = record["manifests"]["evaluate"]["data"]["test_rows"] = rows


@pytest.mark.parametrize(
    ("rows", "accuracy", "points"), [(400, 0.61, 4.0), (10_000, 0.6454, 0.5), (10_000, 0.641, 0.9)]
)
def test_no_method_is_better_for_what_may_be_chance(record, rows, accuracy, points):
    """Two deviations are 4.8 points of 400 samples, and 0.95 of 10,000."""
    with_test_rows(record, rows)
    timed(record, "truncated_2", 1.0, accuracy)
    timed(record, "truncated_5", 3.0, 0.66)
    use = next(line for line in verdict(group_of(record)) if line.startswith("At 64"))
    assert use == (
        "At 64 tokens, on this machine, ASAP is slower than it, and the "
        f"{points} points between them may be chance: the truncation is the better choice."
    )


def test_half_a_point_is_no_difference_however_many_samples():
    share = SimpleNamespace(mean=lambda key: 0.5)
    group = SimpleNamespace(first=SimpleNamespace(test=SimpleNamespace(rows=10**6)), records=[None])
    assert noise(group, share, COLUMN["accuracy"]) == 0.5


def test_a_truncation_is_better(record):
    timed(record, "truncated_5", 2.0, 0.65)
    *_, rival, use = verdict(group_of(record))
    assert "Sinkhorn, T' = 5: 5.00x as fast, with 65.00 % accuracy" in rival
    assert use == "At 64 tokens, on this machine, the truncation is the better choice."


def test_untimed_models_have_no_verdict(record):
    for each in record["rows"]:
        each["model_ms"] = None
    with pytest.raises(ValueError, match="were not timed"):
        verdict(group_of(record))


def test_perplexity_is_better_where_it_is_lower():
    lines = verdict(group_of(published("wikitext")))
    assert "has perplexity 11.97; its teacher has perplexity 11.90" in lines[0]
    assert lines[-1].startswith(
        "Here, on this machine, ASAP is slower than it, and better; at least as good"
    )


def test_lengths_are_listed_in_order(record):
    short = published("digits-vit-sinkhorn-5088834e")
    lines = where_it_changes([group_of(record), group_of(short)])
    assert [line.split(",")[0] for line in lines] == ["digits", "cifar100"]
    # The controls of the record are as fast; truncations are not.
    assert "5.00x as fast, 65.00 % accuracy; the best other as fast 60.93 %" in lines[1]


def test_the_rival_of_equals_is_the_faster_one(record):
    timed(record, "truncated_5", 1.5, 0.6)
    timed(record, "truncated_3", 1.0, 0.6)
    group = group_of(record)
    rows = truncations(compared_rows(group).values())
    rival = honest_rival(rows, headline(group).asap, quality(group))
    assert rival is not None
    assert rival.key == "truncated_3"


def test_differences_that_a_small_test_set_cannot_show_are_named(record):
    with_test_rows(record, 400)
    assert verdict(group_of(record))[-1] == (
        "With 400 test samples, differences below 4.8 points may be chance."
    )
