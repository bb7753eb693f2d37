"""Every map of one teacher in one evaluation, and which of what was measured is dominated."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from asap_exp.calibration.artifact import Artifact
from asap_exp.core.files import read_json
from asap_exp.core.records.evaluation import MapPoint
from asap_exp.evaluate.variants import map_point
from asap_exp.report.accuracy_figure import beyond_words, rows_of, visible
from asap_exp.report.averages import main_rows
from asap_exp.report.groups import Group, grouped
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.pareto import points
from asap_exp.report.records import load_records
from tests.conftest import Pipeline
from tests.records import published, typed
from tests.stages import run_distill, run_evaluate, run_report

LEARNED = ", refine 0, ridge + learned slices, 32 samples"
FEW = ("calibration.learned_slices.updates=3", "calibration.candidates=6")


def row(key: str, kind: str, accuracy: float, ms: float, label: str = "") -> dict[str, Any]:
    timing = {"median": ms, "q1": ms, "q3": ms}
    return {
        "key": key,
        "label": label or key,
        "group": kind,
        "accuracy": accuracy,
        "layer_ms": timing,
        "model_ms": timing,
        "peak_memory_mib": 1.0,
        **dict.fromkeys(
            (
                "agreement",
                "kl",
                "l1_row_distance",
                "row_error",
                "column_error",
                "largest_column_error",
                "entropy",
                "gate_error",
                "layer_speedup",
                "model_speedup",
            ),
            1.0,
        ),
        "layers": [],
    }


ROWS = [
    row("teacher", "teacher", 0.95, 20),
    row("asap", "asap", 0.94, 5),
    row("asap_layer_0", "asap", 1.0, 0.1),
    row("truncated_2", "truncated", 0.90, 4),
    row("truncated_3", "truncated", 0.93, 5),
    row("truncated_8", "truncated", 0.95, 8),
    row("control_uniform", "control", 0.94, 5),
    row("map_0", "asap", 0.92, 6),
    row("map_1", "asap", 0.88, 8),
    row("softmax_trained", "softmax", 1.0, 0.1),
]
MAPS = {
    "map_0": {"key": "map_a", "label": "ASAP, 2 slices"},
    "map_1": {"key": "map_a", "label": "ASAP, 2 slices"},
}


def group(rows: list[dict[str, Any]] = ROWS) -> Group:
    maps = {key: point for key, point in MAPS.items() if key in {row["key"] for row in rows}}
    return Group("g", [typed({**published("digits"), "rows": rows, "maps": maps})])


def test_dominated_is_what_something_as_fast_and_as_accurate_beats() -> None:
    found = {point.key: point.dominated_by for point in points(group())}
    assert found == {
        "truncated_2": None,
        "asap": None,
        "control_uniform": None,  # equal in both: neither dominates the other
        "truncated_3": "asap",
        "map_a": "truncated_2",
        "truncated_8": None,
        "teacher": "truncated_8",
    }


def test_teacher_that_was_not_timed_is_still_what_others_are_near_to() -> None:
    untimed = {**ROWS[0], "model_ms": None}
    found = group([untimed, *ROWS[1:], row("softmax_trained_2", "softmax", 0.8, 3)])
    assert "teacher" not in {point.key for point in points(found)}
    near = {point.key for point in visible(found)}
    assert near == {point.key for point in rows_of(group())} - {"teacher"}


def test_maps_of_one_recipe_are_one_point_with_a_deviation() -> None:
    (point,) = [point for point in points(group()) if point.key == "map_a"]
    assert (point.n, point.label) == (2, "ASAP, 2 slices")
    assert point.mean("accuracy") == pytest.approx(0.90)
    assert point["accuracy"].std == pytest.approx(0.04 / 2**0.5)
    assert point.mean("model_ms") == 7


def test_maps_of_one_teacher_count_as_one_seed_beside_another_teacher() -> None:
    one, other = group(), group([row for row in ROWS if row["key"] != "map_1"])
    both = Group("g", [*one.records, *other.records])
    (point,) = [point for point in points(both) if point.key == "map_a"]
    assert point.n == 2
    assert point.mean("accuracy") == pytest.approx((0.90 + 0.92) / 2)
    assert point["accuracy"].std == pytest.approx(0.02 / 2**0.5)


def test_one_row_far_below_all_others_is_named_below_the_axis() -> None:
    near = [row for row in ROWS if row["key"] in ("teacher", "asap", "truncated_3", "truncated_8")]
    for accuracy, shown in ((0.90, True), (0.88, False)):  # beside 0.93 to 0.95
        found = group([*near, row("control_uniform", "control", accuracy, 5)])
        assert ("control_uniform" in {each.key for each in visible(found)}) is shown
    assert beyond_words(found) == "1 method below the axis: control: uniform attention (88.00)"


def test_truncation_is_matched_by_a_map_that_is_no_slower_and_no_worse() -> None:
    found = {point.key: point.matched for point in points(group())}
    assert {key: found[key] for key in ("truncated_2", "truncated_3", "truncated_8")} == {
        "truncated_2": False,
        "truncated_3": True,
        "truncated_8": False,
    }
    assert found["asap"] is found["teacher"] is found["control_uniform"] is None
    relaxed = [row(f"relaxed_{T}", "relaxed", 0.9 + T / 100, T) for T in (3, 5)]
    found = {point.key: point.matched for point in points(group([*ROWS, *relaxed]))}
    assert found["relaxed_3"] is found["relaxed_5"] is False


def test_masked_language_models_are_compared_by_their_perplexity() -> None:
    """Accuracies say the contrary here, and are not asked."""
    rows = [
        {**found, "accuracy": ms, "perplexity": perplexity}
        for found, ms, perplexity in (
            (row("teacher", "teacher", 0, 20), 0.1, 9.0),
            (row("asap", "asap", 0, 5), 0.2, 10.0),
            (row("truncated_2", "truncated", 0, 6), 0.9, 11.0),
            (row("truncated_8", "truncated", 0, 8), 0.3, 9.5),
            (row("control_uniform", "control", 0, 7), 0.9, None),  # infinite
        )
    ]
    masked = Group("g", [typed({**published("wikitext"), "rows": rows, "maps": {}})])
    found = {point.key: point.dominated_by for point in points(masked)}
    assert found == {
        "asap": None,
        "truncated_2": "asap",
        "control_uniform": "asap",
        "truncated_8": None,
        "teacher": None,
    }
    matched = {point.key: point.matched for point in points(masked)}
    assert (matched["truncated_2"], matched["truncated_8"]) == (True, False)
    assert [point.key for point in visible(masked)] == ["truncated_8", "teacher"]


@pytest.fixture(scope="module")
def record(shared_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_json(evaluated(shared_pipeline, tmp_path_factory.mktemp("maps")))


def evaluated(shared: Pipeline, folder: Path) -> Path:
    """Two ridge maps that differ in their seed, learned slices, and a map of the last layer."""

    shutil.copytree(shared.results, folder / "results")
    results = folder / "results"
    run_distill(results, "layer=last")
    run_distill(results, "calibration=learned_slices", *FEW)
    artifact = run_distill(results, "calibration.seed=1")
    return run_evaluate(results, "maps=all", f"artifact={artifact}")


@pytest.mark.slow
def test_every_map_of_the_same_layers_is_measured_with_its_control(record: dict[str, Any]) -> None:
    rows = {row["key"]: row for row in record["rows"]}
    others = {key: rows[key] for key in rows if key.startswith("map_")}
    assert others.keys() == {"map_0", "map_0_query", "map_1", "map_1_query"}
    assert [others[key]["group"] for key in others] == ["asap", "control"] * 2
    assert [row["label"] for row in others.values()] == [
        "ASAP, 3 slices, refine 0, ridge, 32 samples, seed 0",
        "control: query features, refine 0, ridge, 32 samples, seed 0",
        f"ASAP, 3 of 6 slices + query and adaptive features{LEARNED}, seed 0",
        f"control: query features{LEARNED}, seed 0",
    ]
    for row in others.values():
        assert row["layers"] == ["blocks.0.attn", "blocks.1.attn"]
        assert row["model_ms"]["median"] > 0


def test_the_newest_map_and_its_sister_are_one_point(record: dict[str, Any]) -> None:
    (group,) = grouped([typed(record)])
    asap = [point for point in points(group) if point.group == "asap"]
    assert sorted((point.n, point.label) for point in asap) == [
        (1, f"ASAP, 3 of 6 slices + query and adaptive features{LEARNED}"),
        (2, "ASAP, 3 slices, refine 0, ridge, 32 samples"),
    ]
    assert not any(row.key.startswith("map_") for row in main_rows(group))


@pytest.mark.slow
def test_report_shows_the_maps_in_a_table_and_in_the_figures(
    shared_pipeline: Pipeline, tmp_path: Path
) -> None:
    evaluated(shared_pipeline, tmp_path)
    run_report(tmp_path / "results", f"out={tmp_path}")
    (plain, maps) = sorted(
        grouped(load_records(tmp_path / "records")), key=lambda g: bool(g.first.maps)
    )
    for group in (plain, maps):
        assert (tmp_path / "figures" / f"{group.slug}-accuracy_latency.png").is_file()
    assert (tmp_path / "figures" / "summary.png").is_file()
    text = tables_markdown([maps])
    main, _, table = text.partition("Every map and truncation, by latency")
    assert "learned slices" not in main
    assert "| ASAP | 3 |  | 0 | ridge | 32 | 2 |" in table
    assert "| control: no slices |  | query | 0 | ridge | 32 | 2 |" in table
    assert "matched by ASAP" in table
    assert "Every map" not in tables_markdown([plain])


@pytest.mark.slow
def test_control_of_maps_that_differ_in_their_slices_alone_is_measured_once(
    pipeline: Pipeline,
) -> None:
    run_distill(pipeline.results, "calibration.slices=2")
    run_distill(pipeline.results, "calibration.slices=2", "calibration.seed=1")
    record = read_json(run_evaluate(pipeline.results, "maps=all", f"artifact={pipeline.artifact}"))
    controls = [r["label"] for r in record["rows"] if "query features, refine" in r["label"]]
    assert controls == ["control: query features, refine 0, ridge, 32 samples, seed 1"]
    (group,) = grouped([typed(record)])
    (point,) = [p for p in points(group) if p.label.startswith("control: query features, ref")]
    assert point.n == 2  # with that of the evaluation's own map, of seed 0


@pytest.mark.slow
def test_other_maps_are_part_of_what_names_the_record(pipeline: Pipeline) -> None:
    alone = run_evaluate(pipeline.results)
    every = run_evaluate(pipeline.results, "maps=all")
    run_distill(pipeline.results, "calibration.seed=1")
    more = run_evaluate(pipeline.results, "maps=all", f"artifact={pipeline.artifact}")
    assert len({alone, every, more}) == 3
    assert read_json(alone)["maps"] == {}


def test_points_of_published_maps_keep_their_names() -> None:
    """They are hashes of how a map was made: the same map must be the same point tomorrow."""
    for name in ("agnews", "cifar-vit-sinkhorn-f9c05404-s0-e7c8e40c", "imdb", "wikitext"):
        record = published(name)
        artifact = Artifact(record["artifact"], {})
        assert map_point(artifact, control=False) == MapPoint(**record["maps"]["asap"])
        query = record["maps"]["control_query"]
        assert map_point(artifact, control=True) == MapPoint(**query)
