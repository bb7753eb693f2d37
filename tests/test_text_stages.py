"""All stages on texts: every task trains, is compiled, evaluated and reported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asap_exp.attention import AsapAttention, attention_layers, swapped
from asap_exp.data.catalog import TEXT_DATASETS
from asap_exp.data.tokenizer import FILE
from asap_exp.distillation.artifact import load_artifact
from asap_exp.errors import UserError
from asap_exp.evaluation.curves import training_curves
from asap_exp.files import read_json
from asap_exp.models import load_net
from asap_exp.runs import Run
from asap_exp.tensors import load_tensors
from tests.data.sentences import make_folder, text_root
from tests.models.test_text import LENGTHS, TokenBatch, make_batch
from tests.stages import run_distill, run_evaluate, run_report, run_text

EVALUATED = ("max_test_rows=null", "fidelity_samples=8")


@dataclass
class TextPipeline:
    root: Path
    results: Path
    teacher: Run
    softmax: Run
    artifact: Path
    record: dict[str, Any]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> TextPipeline:
    root = text_root(tmp_path_factory.mktemp("texts"), "agnews", "dbpedia", "yelp", "imdb")
    results = root / "results"
    softmax = run_text(results, root, "task=agnews", attention=("attention=softmax",))
    teacher = run_text(results, root, "task=agnews")
    artifact = run_distill(results)
    record = read_json(run_evaluate(results, *EVALUATED))
    return TextPipeline(root, results, teacher, softmax, artifact, record)


def test_teacher_learns_and_leaves_its_tokenizer(pipeline: TextPipeline) -> None:
    run = pipeline.teacher
    assert (run.path / FILE).is_file()
    assert run.manifest["data"]["tokenizer_sha256"]
    assert run.manifest["data"]["train_split_rows_in_all"] == 120_000
    curves = training_curves(run.path)
    assert curves[-1]["train/loss_epoch"] < curves[0]["train/loss_epoch"]
    for layer in (0, 1):
        assert 0 <= curves[-1][f"plan/{layer}/column_error"] < 1
        assert 0 < curves[-1][f"plan/{layer}/entropy"] <= 1


def test_evaluation_has_every_row_and_says_texts(pipeline: TextPipeline) -> None:
    rows = {row["key"]: row for row in pipeline.record["rows"]}
    assert {"teacher", "asap", "truncated_1", "control_uniform", "softmax_trained"} <= rows.keys()
    assert rows["teacher"]["agreement"] == 1.0
    assert rows["control_zero"]["kl"] == pytest.approx(rows["truncated_1"]["kl"], abs=1e-6)
    assert pipeline.record["samples"] == "texts"
    assert pipeline.record["test"] == {"rows": 40, "of": 7_600}
    assert pipeline.record["softmax_run"] == pipeline.softmax.name
    for row in rows.values():
        assert row["gate_error"] is None or row["gate_error"] < 1e-3


def test_columns_of_plans_are_right_over_the_valid_tokens(pipeline: TextPipeline) -> None:
    rows = {row["key"]: row for row in pipeline.record["rows"]}
    assert rows["control_uniform"]["column_error"] == pytest.approx(0, abs=1e-6)
    for row in rows.values():
        assert row["row_error"] == pytest.approx(0, abs=1e-5)


def test_example_plan_has_no_padding(pipeline: TextPipeline) -> None:
    for plan in pipeline.record["plans"]["plans"].values():
        assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in plan)


def test_fit_sees_the_valid_tokens_alone(pipeline: TextPipeline) -> None:
    """In batches of one text, without any padding, the map is the same."""
    alone = run_distill(
        pipeline.results, f"teacher={pipeline.teacher.path}", "calibration.batch_size=1"
    )
    expected = load_artifact(pipeline.artifact)
    found = load_artifact(alone)
    for name, tensor in found.tensors.items():
        assert (tensor - expected.tensors[name]).abs().max() < 1e-3, name
    pairs = zip(
        read_json(alone / "fidelity.json"),
        read_json(pipeline.artifact / "fidelity.json"),
        strict=True,
    )
    for one, many in pairs:
        for measure in ("l1_row_distance", "column_error", "r_squared_held_out"):
            assert one[measure] == pytest.approx(many[measure], abs=1e-3)


def test_compiled_model_treats_a_padded_batch_as_its_texts(pipeline: TextPipeline) -> None:
    net = load_net(pipeline.teacher)
    artifact = load_artifact(pipeline.artifact)
    maps = {path: artifact.attention(path) for path in attention_layers(net)}
    assert all(isinstance(attend, AsapAttention) for attend in maps.values())
    batch = make_batch()
    with swapped(net, maps):
        together = net(batch)
        for i, length in enumerate(LENGTHS):
            alone = net(TokenBatch(batch.ids[i : i + 1, :length]))
            assert (together[i] - alone[0]).abs().max() < 1e-4


def test_evaluation_is_the_same_in_batches_of_one(pipeline: TextPipeline) -> None:
    again = read_json(run_evaluate(pipeline.results, *EVALUATED, "batch_size=1"))
    for one, many in zip(again["rows"], pipeline.record["rows"], strict=True):
        for name in ("accuracy", "agreement", "kl", "loss"):
            assert one[name] == pytest.approx(many[name], abs=1e-5), one["key"]


@pytest.mark.parametrize("task", ["dbpedia", "yelp", "imdb"])
def test_every_task_goes_through_all_stages(pipeline: TextPipeline, task: str) -> None:
    results = pipeline.root / f"results-{task}"
    run_text(results, pipeline.root, f"task={task}", "recipe.epochs=1")
    run_distill(results, f"task={task}")
    record = read_json(run_evaluate(results, f"task={task}", *EVALUATED))
    assert record["task"] == record["data"] == task
    assert run_report(results)
    tables = (results / "tables.md").read_text()
    assert "40 of" in tables
    assert "SUBSET" in tables


def test_same_run_ends_in_the_same_weights(pipeline: TextPipeline, tmp_path: Path) -> None:
    again = run_text(tmp_path, pipeline.root, "task=agnews")
    expected = load_tensors(pipeline.teacher.weights)
    assert all(t.equal(expected[name]) for name, t in load_tensors(again.weights).items())


def test_other_training_texts_are_refused(pipeline: TextPipeline, tmp_path: Path) -> None:
    make_folder(tmp_path, TEXT_DATASETS["agnews"], train=120)
    with pytest.raises(UserError, match=r"training texts of agnews found now .* are not those"):
        run_distill(
            pipeline.results,
            f"teacher={pipeline.teacher.path}",
            f"data.root={tmp_path}",
            "calibration.seed=1",
        )
