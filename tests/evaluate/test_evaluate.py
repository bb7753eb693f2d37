"""A whole evaluation: which rows it has, and what must hold between them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asap_exp.attention import SinkhornAttention
from asap_exp.core.composing import compose
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.evaluation import OTHER_MAP
from asap_exp.core.records.right import labels_hash, packed
from asap_exp.core.sealed import SEAL, write_sealed
from asap_exp.data.catalog import TEXT_DATASETS
from asap_exp.data.raw_texts import load_texts
from asap_exp.evaluate import measure
from asap_exp.evaluate.resolve import matched_baselines
from asap_exp.report.accuracy_figure import family_of, number_of, rows_of
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group
from asap_exp.report.headline import headline
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.page_tables import map_note
from asap_exp.report.records import read_record
from asap_exp.report.verdict import verdict
from tests.conftest import Pipeline
from tests.data.sentences import text_root
from tests.records import typed
from tests.stages import run_coarse, run_distill, run_evaluate, run_text, run_train

NONE_RIGHT = packed(np.ones(48, dtype=bool))
"""Differs from the teacher in every sample."""


@pytest.fixture(scope="module")
def record(shared_pipeline: Pipeline) -> dict[str, Any]:
    return read_json(shared_pipeline.record)


@pytest.fixture(scope="module")
def rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in record["rows"]}


def test_every_row_of_the_table_is_there(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == [
        "teacher",
        "asap",
        "asap_layer_0",
        "asap_layer_1",
        "truncated_1",
        "truncated_2",  # and not T' = 10, which is no truncation of T = 4
        "relaxed_2",
        "control_zero",
        "control_query",
        "control_uniform",
        "softmax_swapped",
        "softmax_trained",
    ]


def test_teacher_agrees_with_itself(rows: dict[str, dict[str, Any]]) -> None:
    teacher = rows["teacher"]
    assert teacher["agreement"] == 1.0
    assert teacher["kl"] == pytest.approx(0, abs=1e-9)
    assert teacher["l1_row_distance"] == 0.0
    assert teacher["layer_speedup"] == teacher["model_speedup"] == 1.0


def test_asap_with_zero_weights_is_sinkhorn_truncated_to_one(
    rows: dict[str, dict[str, Any]],
) -> None:
    for name in ("accuracy", "agreement", "kl", "l1_row_distance", "column_error"):
        assert rows["control_zero"][name] == pytest.approx(rows["truncated_1"][name], abs=1e-6)


def test_more_updates_come_closer_to_the_teacher(rows: dict[str, dict[str, Any]]) -> None:
    assert (
        rows["softmax_swapped"]["l1_row_distance"]
        > rows["truncated_1"]["l1_row_distance"]
        > rows["truncated_2"]["l1_row_distance"]
        > 0
    )


def test_relaxed_updates_are_others_than_plain_ones(rows: dict[str, dict[str, Any]]) -> None:
    relaxed, plain = rows["relaxed_2"], rows["truncated_2"]
    assert relaxed["group"] == "relaxed"
    assert relaxed["label"] == "Sinkhorn, T' = 2, relaxed by 1.6"
    assert relaxed["l1_row_distance"] != plain["l1_row_distance"]
    assert rows["truncated_1"]["l1_row_distance"] > relaxed["l1_row_distance"] > 0


def test_asap_beats_the_control_with_the_same_cost(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["asap"]["l1_row_distance"] < rows["control_zero"]["l1_row_distance"]


def test_uniform_attention_has_exact_columns(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["control_uniform"]["column_error"] == pytest.approx(0, abs=1e-6)
    for row in rows.values():  # of each layer that a row is about, in the model's order
        paths = row["layers"] or ["blocks.0.attn", "blocks.1.attn"]
        assert [each["layer"] for each in row["layer_columns"]] == paths
        largest = max(each["largest"] for each in row["layer_columns"])
        assert row["largest_column_error"] == largest >= row["column_error"]


def test_a_model_trained_by_itself_has_no_distance_to_the_teacher(
    rows: dict[str, dict[str, Any]], shared_pipeline: Pipeline, record: dict[str, Any]
) -> None:
    assert rows["softmax_trained"]["l1_row_distance"] is None
    assert rows["softmax_trained"]["column_error"] > 0
    assert record["softmax_run"] == shared_pipeline.softmax.name


def test_which_samples_are_right_is_stored_for_every_row(
    record: dict[str, Any], rows: dict[str, dict[str, Any]]
) -> None:
    found = typed(record).right
    assert found is not None
    assert found.samples == 48
    assert list(found.bits) == list(rows)
    for key, row in rows.items():
        assert found.right(key).mean() == pytest.approx(row["accuracy"])
    agree = found.right("control_zero") == found.right("truncated_1")
    assert agree.all(), "the same function"


def test_samples_that_contradict_a_row_are_refused(record: dict[str, Any]) -> None:
    for change, words in (
        ({"samples": 47}, "right"),
        ({"bits": dict(list(record["right"]["bits"].items())[:-1])}, "not about the rows"),
        ({"bits": {**record["right"]["bits"], "asap": NONE_RIGHT}}, "gives the accuracy"),
    ):
        wrong = deepcopy(record)
        wrong["right"] |= change
        with pytest.raises(UserError, match=words):
            typed(wrong)


@pytest.mark.slow
def test_texts_and_the_linear_baseline_are_in_the_order_of_the_test_split(tmp_path: Path) -> None:
    root = text_root(tmp_path / "data", "agnews")
    results = tmp_path / "results"
    run_text(results, root, "task=agnews")
    small = ("calibration.samples=8", "calibration.holdout=4", "calibration.batch_size=4")
    run_distill(results, *small)
    one, two = (
        read_record(run_evaluate(results, "max_test_rows=null", "batch_size=8", *given))
        for given in ((), ("latency.rounds=4", "batch_size=5"))
    )
    assert one.right is not None
    assert two.right is not None
    assert "baseline_svm" in one.right.bits
    labels = load_texts(TEXT_DATASETS["agnews"], "test", str(root), None).labels
    assert one.right.labels_sha256 == labels_hash(np.array(labels))
    assert one.right == two.right, "whatever the batches"


@pytest.mark.slow
def test_espformer_trained_alike_is_a_row_of_its_own(pipeline: Pipeline) -> None:
    espformer = run_train(pipeline.results, attention=("attention=espformer",))
    record = read_json(run_evaluate(pipeline.results))
    assert record["espformer_run"] == espformer.name
    assert record["manifests"]["espformer"] == read_json(espformer.path / "manifest.json")
    rows = {row["key"]: row for row in record["rows"]}
    assert rows["espformer_trained"]["label"] == "ESPFormer, trained alike"
    assert rows["espformer_trained"]["layer_ms"]["median"] > 0
    assert rows["espformer_trained"]["column_error"] > 0
    assert "softmax_trained" in rows


@pytest.mark.slow
def test_several_rivals_of_the_same_recipe_are_rows_of_their_own(pipeline: Pipeline) -> None:
    given = (
        ("attention=lotformer", "attention.pivots=3"),
        ("attention=lotformer",),
        ("attention=differential",),
        ("attention=hedgehog",),
        ("attention=sinkformer",),
    )
    runs = [run_train(pipeline.results, attention=attention) for attention in given]
    file = run_evaluate(pipeline.results)
    found = read_record(file)
    rows = {row.key: row for row in found.rows if row.group == "rival"}
    assert {row.label for row in rows.values()} == {
        "LOTFormer (pivots=3), trained alike",
        "LOTFormer, trained alike",
        "differential attention, trained alike",
        "Hedgehog, trained alike",
        "Sinkformer, trained alike",
    }
    assert set(found.rival_runs.values()) == {run.name for run in runs}
    assert list(found.rival_runs) == list(rows) == list(found.manifests.rivals)
    names = {key: run.split("/")[1].removeprefix("vit-") for key, run in found.rival_runs.items()}
    for key, row in rows.items():
        assert key.startswith(f"{names[key].split('-')[0]}_")
        assert row.layer_ms is not None
        assert row.l1_row_distance is None
    group = Group("", [found])
    assert "LOTFormer (pivots=3), same recipe" in tables_markdown([group])
    assert {family_of(row) for row in rows_of(group)} >= {"rival", "softmax"}
    value = read_json(file)
    del value["rival_runs"][next(iter(rows))]
    with pytest.raises(UserError, match=r"rival_runs is not what manifests\.rivals says"):
        typed(value)


@pytest.mark.slow
def test_a_teacher_is_no_rival_of_its_own(tmp_path: Path) -> None:
    """Another number of half-steps is one: the teacher's attention with other options."""
    sinkformer = ("attention=sinkformer",)
    other = run_train(tmp_path, attention=(*sinkformer, "attention.half_steps=5"))
    teacher = run_train(tmp_path, attention=sinkformer)
    run_distill(tmp_path, f"teacher={teacher.path}")
    found = read_record(run_evaluate(tmp_path))
    assert list(found.rival_runs.values()) == [other.name]


@pytest.mark.slow
def test_coarse_attentions_trained_alike_are_rows_by_size_and_form(pipeline: Pipeline) -> None:
    """One here has the number of updates of the teacher, the other one has not."""
    options = (
        ("attention.tokens=2", "attention.num_iters=4", "attention.refine=1"),
        ("attention.tokens=3", "attention.num_iters=2", "attention.one_pass=true"),
    )
    runs = [run_train(pipeline.results, attention=("attention=coarse", *o)) for o in options]
    file = run_evaluate(pipeline.results)
    record = read_json(file)
    assert {record["coarse_run"], *record["more_coarse_runs"]} == {run.name for run in runs}
    assert len(record["manifests"]["more_coarse"]) == 1
    rows = {row["label"]: row for row in record["rows"] if row["group"] == "coarse"}
    assert rows.keys() == {
        "coarse duals, 2 tokens, two-sided, refine 1, trained alike",
        "coarse duals, 3 tokens, one pass, T = 2, trained alike",
    }
    for row in rows.values():
        assert row["key"].startswith("coarse_")
        assert row["key"].endswith("_trained")
        assert row["layer_ms"]["median"] > 0
        assert row["column_error"] > 0
    group = Group("", [read_record(file)])
    drawn = {row.name: family_of(row) for row in rows_of(group) if row.group == "coarse"}
    assert set(drawn.values()) == {"coarse"}
    assert "coarse duals, 2 tokens, two-sided, refine 1, same recipe" in drawn
    assert {number_of(row) for row in rows_of(group) if row.group == "coarse"} == {"2", "3"}


@pytest.mark.slow
def test_coarse_duals_without_a_fit_are_evaluated_beside_a_map(pipeline: Pipeline) -> None:
    """They have no controls of weights, no drift and no fidelity of a calibration."""
    for form in ("two_sided", "one_pass"):
        run_coarse(pipeline.results, f"calibration.form={form}")
    file = run_evaluate(pipeline.results, "maps=all")
    found = read_record(file)
    rows = {row.key: row for row in found.rows}
    assert rows["asap"].group == "coarse"
    assert rows["asap"].label == "coarse duals, 2 tokens, one pass, all layers"
    assert "control_zero" not in rows
    assert (found.drift, found.fidelity) == (None, [])
    labels = {row.label for row in found.rows if row.key.startswith(OTHER_MAP)}
    assert "coarse duals, 2 tokens, two-sided" in labels
    assert any(label.startswith("ASAP, 3 slices") for label in labels)
    assert any(label.startswith("control: query features") for label in labels), "of that map"
    group = Group("", [found])
    families = {family_of(row) for row in rows_of(group)}
    assert {"coarse two-sided", "coarse one pass", "asap", "control"} <= families
    assert "fidelity" not in group_figures(group)
    assert headline(group).name == "coarse duals, 2 tokens, one pass"
    assert verdict(group)[0].startswith("Coarse duals, 2 tokens, one pass runs the model")
    assert "Coarse duals, 2 tokens, one pass, without a fit" in tables_markdown([group])
    assert map_note(group) == "coarse duals, 2 tokens, one pass"


@pytest.mark.slow
def test_relaxed_sinkhorn_trained_alike_is_a_row_of_its_own(pipeline: Pipeline) -> None:
    attention = ("attention=relaxed_sinkhorn", "attention.num_iters=2")
    other = run_train(pipeline.results, attention=attention)
    record = read_json(run_evaluate(pipeline.results))
    assert record["relaxed_sinkhorn_run"] == other.name
    row = {row["key"]: row for row in record["rows"]}["relaxed_sinkhorn_trained"]
    assert row["label"] == "relaxed Sinkhorn, trained alike"
    assert row["layer_ms"]["median"] > 0
    assert row["column_error"] > 0


def test_every_row_is_timed_and_weighed(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        for name in ("layer_ms", "model_ms"):
            assert 0 < row[name]["q1"] <= row[name]["median"] <= row[name]["q3"]
        assert row["peak_memory_mib"] > 0
        assert row["gate_error"] < 1e-3


def test_record_calls_a_subset_a_subset_and_carries_its_manifests(record: dict[str, Any]) -> None:
    assert record["test"] == {"rows": 48, "of": 540}
    assert record["device"] == "CPU"
    for stage in ("train", "distill", "evaluate", "softmax"):
        manifest = record["manifests"][stage]
        assert manifest["status"] == "finished"
        assert manifest["versions"]["torch"]
        assert {"commit", "dirty"} == manifest["code"].keys()
    assert record["manifests"]["evaluate"]["data"]["test_sha256"]
    assert "results" not in record["manifests"]["evaluate"]["config"]


@pytest.mark.slow
def test_drift_is_small_on_the_test_split_and_is_printed(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    drift = read_json(run_evaluate(pipeline.results))["drift"]
    assert drift.keys() == {"blocks.0.attn", "blocks.1.attn"}
    assert all(0.7 < ratio < 1.5 for ratio in drift.values())
    assert "over that at calibration: blocks.0.attn " in capsys.readouterr().out


def test_plans_have_unit_rows(record: dict[str, Any]) -> None:
    for plan in record["plans"]["plans"].values():
        for row in plan:
            assert sum(row) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_one_compiled_layer_is_compared_in_that_layer(pipeline: Pipeline) -> None:
    run_distill(pipeline.results, "layer=last")
    record = read_json(run_evaluate(pipeline.results))
    rows = {row["key"]: row for row in record["rows"]}
    assert record["artifact"]["layers"] == ["blocks.1.attn"]
    assert rows["asap"]["label"] == "ASAP, layer 1"
    assert "asap_layer_1" not in rows
    for key in ("truncated_1", "control_uniform", "softmax_swapped"):
        assert rows[key]["layers"] == ["blocks.1.attn"]


@pytest.mark.slow
def test_wrong_attention_is_reported_and_not_timed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(attend: object, inputs: object) -> float:
        wrong = isinstance(attend, SinkhornAttention) and attend.num_iters == 2
        return 0.5 if wrong else 0.0

    monkeypatch.setattr(measure, "gate_error", error)
    rows = {row["key"]: row for row in read_json(run_evaluate(pipeline.results))["rows"]}
    assert rows["truncated_2"]["layer_ms"] is None
    assert rows["truncated_2"]["model_speedup"] is None
    assert rows["truncated_1"]["model_speedup"] > 0
    assert "Sinkhorn, T' = 2 is wrong by 0.5" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("size", ["latency.batch_size=49", "fidelity_samples=49"])
def test_sizes_that_the_test_images_cannot_fill_are_refused(pipeline: Pipeline, size: str) -> None:
    with pytest.raises(UserError, match=f"{size} is more than the 48 test images"):
        run_evaluate(pipeline.results, size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is refused where there is no GPU")
def test_cuda_graphs_need_a_gpu(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"latency\.cuda_graph=true needs a GPU"):
        run_evaluate(pipeline.results, "latency.cuda_graph=true")


@pytest.mark.slow
def test_latency_batch_may_exceed_the_batch_of_the_predictions(pipeline: Pipeline) -> None:
    record = read_json(run_evaluate(pipeline.results, "batch_size=16", "latency.batch_size=40"))
    assert record["latency"]["batch_size"] == 40


@pytest.mark.slow
def test_logger_and_accelerator_are_no_part_of_an_evaluation(pipeline: Pipeline) -> None:
    again = run_evaluate(pipeline.results, "logger.project=other", "accelerator=cpu")
    assert again == pipeline.record
    assert run_evaluate(pipeline.results, "fidelity_samples=8") != pipeline.record


@pytest.mark.slow
def test_maps_of_the_same_tensors_have_records_of_their_own(pipeline: Pipeline) -> None:
    """The ridge fit is the same whatever refines its dual."""
    other = run_distill(pipeline.results, "calibration.refine=1")
    tensors = [(folder / "asap.safetensors").read_bytes() for folder in (pipeline.artifact, other)]
    assert tensors[0] == tensors[1]
    records = {
        refine: run_evaluate(pipeline.results, f"artifact={folder}")
        for refine, folder in ((0, pipeline.artifact), (1, other))
    }
    for refine, record in records.items():
        assert read_json(record)["artifact"]["refine"] == refine


@pytest.mark.slow
def test_number_that_is_not_finite_is_written_as_null(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "gate_error", lambda *_: float("nan"))
    rows = read_json(run_evaluate(pipeline.results))["rows"]
    assert {row["gate_error"] for row in rows} == {None}
    assert {row["layer_ms"] is None for row in rows} == {True}


def test_unfinished_map_is_refused(pipeline: Pipeline) -> None:
    manifest = read_json(pipeline.artifact / "manifest.json")
    write_sealed(pipeline.artifact / "manifest.json", {**manifest, "status": "failed"})
    with pytest.raises(UserError, match="holds no finished map"):
        run_evaluate(pipeline.results, f"artifact={pipeline.artifact}")


@pytest.mark.parametrize("folder", ["/", "nowhere", "{results}/runs"])
def test_folder_without_a_map_is_refused(pipeline: Pipeline, folder: str) -> None:
    folder = folder.format(results=pipeline.results)
    with pytest.raises(UserError, match=f"^artifact={folder} holds no finished map; .*RUN/distill"):
        run_evaluate(pipeline.results, f"artifact={folder}")


def test_nothing_compiled_gives_the_command_that_compiles(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"asap_exp\.distill paths\.results=\S+ task=cifar"):
        run_evaluate(pipeline.results, "task=cifar")


@pytest.mark.parametrize("key", ["train_sha256", "val_rows_sha256"])
def test_a_model_of_other_data_is_no_matched_baseline(
    pipeline: Pipeline, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose("evaluate", [f"paths.results={pipeline.results}"], EvaluateConfig)
    (found,) = matched_baselines(pipeline.teacher, "softmax", config)
    assert found is not None
    assert not capsys.readouterr().err
    file = found.path / "manifest.json"
    manifest = {name: value for name, value in read_json(file).items() if name != SEAL}
    manifest["data"][key] = "f" * 64
    write_sealed(file, manifest)
    assert matched_baselines(pipeline.teacher, "softmax", config) == []
    warned = capsys.readouterr().err
    assert str(found.path) in warned
    assert f"trained on other data ({key})" in warned
