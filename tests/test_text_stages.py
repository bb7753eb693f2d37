"""All stages on texts: every task trains, is compiled, evaluated and reported."""

import csv
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import asap_exp
from asap_exp.attention import AsapAttention, attention_layers, swapped
from asap_exp.calibration.artifact import load_artifact
from asap_exp.calibration.steps import AdamFit
from asap_exp.core.config import MovedData
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.words import map_label
from asap_exp.core.runs import Run
from asap_exp.core.tensors import load_tensors
from asap_exp.core.training_log import training_curves
from asap_exp.data.catalog import TEXT_DATASETS
from asap_exp.data.run_data import run_data
from asap_exp.data.tokenizer import FILE, save_tokenizer, train_tokenizer
from asap_exp.distill.budget import distill_within_budget
from asap_exp.distill.config import DistillConfig
from asap_exp.models import load_net
from asap_exp.report.groups import Group, grouped
from asap_exp.report.markdown import summary_lines, tables_markdown
from asap_exp.train import trainer as training_fit
from asap_exp.train.trainer import train
from tests.composed import composed
from tests.data.sentences import make_folder, text_root
from tests.models.test_text import LENGTHS, TokenBatch, make_batch
from tests.records import typed
from tests.stages import (
    CALIBRATION,
    TINY_TEXT,
    run_benchmark,
    run_coarse,
    run_distill,
    run_evaluate,
    run_report,
    run_text,
    train_config,
)

pytestmark = pytest.mark.slow

WHERE_IT_WAS = MovedData(root=None, cache=None, path=None)
FEW = AdamFit(updates=3, lr=0.02)
FEW_UPDATES = (
    "calibration.candidates=6",
    "calibration.learned_slices.updates=5",
    "calibration.end_to_end.updates=5",
)
BUDGET = ("budget.latency.batch_size=4", "budget.latency.rounds=3", "budget.slices=[2]")
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
    assert run.manifest.data["tokenizer_sha256"]
    assert run.manifest.data["train_split_rows_in_all"] == 120_000
    curves = training_curves(run.path)
    assert curves[-1]["train/loss_epoch"] < curves[0]["train/loss_epoch"]
    for layer in (0, 1):
        assert 0 <= curves[-1][f"plan/{layer}/column_error"] < 1
        assert 0 < curves[-1][f"plan/{layer}/entropy"] <= 1


def test_evaluation_has_every_row_and_says_texts(pipeline: TextPipeline) -> None:
    rows = {row["key"]: row for row in pipeline.record["rows"]}
    assert {"teacher", "asap", "truncated_1", "control_uniform", "softmax_trained"} <= rows.keys()
    assert rows["teacher"]["agreement"] == 1.0
    assert rows["baseline_svm"]["accuracy"] == 1.0, "the class is told by single words"
    assert rows["baseline_svm"]["model_ms"] is None
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
        if row["group"] == "baseline":
            continue
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
        for measure in ("l1_row_distance", "column_error", "r_squared_held_out", "kl_ridge"):
            assert one[measure] == pytest.approx(many[measure], abs=1e-3)


def test_coarse_duals_of_padded_texts(pipeline: TextPipeline) -> None:
    """As a feature of a map it is fitted alike in batches and one by one; without a fit it runs."""
    which = (f"teacher={pipeline.teacher.path}", "calibration.coarse.tokens=6")
    fitted = (*which, "calibration.slices=0", "calibration.query_features=true")
    many, alone = (
        load_artifact(run_distill(pipeline.results, *fitted, f"calibration.batch_size={size}"))
        for size in (16, 1)
    )
    for name, tensor in many.tensors.items():
        torch.testing.assert_close(tensor, alone.tensors[name], atol=1e-3, rtol=1e-3)
    folder = run_coarse(pipeline.results, *which, "calibration.coarse.choice=kmeans")
    record = read_json(run_evaluate(pipeline.results, f"artifact={folder}", *EVALUATED))
    rows = {row["key"]: row for row in record["rows"]}
    assert rows["asap"]["label"] == "coarse duals, 6 tokens, two-sided, kmeans, all layers"
    assert rows["asap"]["row_error"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(UserError, match="choice=grid is for images, and this model reads texts"):
        run_coarse(pipeline.results, *which, "calibration.coarse.choice=grid")


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
    which = f"artifact={pipeline.artifact}"  # another test leaves a newer one
    again = read_json(run_evaluate(pipeline.results, *EVALUATED, which, "batch_size=1"))
    for one, many in zip(again["rows"], pipeline.record["rows"], strict=True):
        for name in ("accuracy", "agreement", "kl", "loss"):
            if many[name] is None:
                continue
            assert one[name] == pytest.approx(many[name], abs=1e-5), one["key"]


@pytest.mark.parametrize("task", ["dbpedia", "yelp", "imdb"])
def test_every_task_goes_through_all_stages(pipeline: TextPipeline, task: str) -> None:
    results = pipeline.root / f"results-{task}"
    run_text(results, pipeline.root, f"task={task}", "recipe.epochs=1")
    run_distill(results, f"task={task}")
    record = read_json(run_evaluate(results, f"task={task}", *EVALUATED))
    assert record["task"] == record["data"] == task
    tables = tables_markdown(grouped([typed(record)]))
    assert "40 of" in tables
    assert "SUBSET" in tables
    if task == "imdb":
        assert run_report(results)
        assert (results / "report" / "tables.md").read_text() == tables


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


@pytest.fixture(scope="module")
def pretrained(pipeline: TextPipeline) -> Run:
    return run_text(pipeline.results, pipeline.root, "task=agnews_mlm")


def test_pre_training_is_recorded_and_learns(pretrained: Run) -> None:
    manifest = pretrained.manifest
    assert manifest.best_val_perplexity > 1
    assert manifest.best_val_accuracy is None
    curves = training_curves(pretrained.path)
    assert curves[-1]["val/perplexity"] < curves[0]["val/perplexity"]
    assert curves[-1]["val/perplexity"] == pytest.approx(math.exp(curves[-1]["val/loss"]), rel=1e-4)
    kept = curves[manifest.kept_epoch]["val/perplexity"]
    assert kept == min(row["val/perplexity"] for row in curves)
    assert manifest.best_val_perplexity == pytest.approx(kept, rel=1e-4)


def test_classifier_starts_from_the_pre_trained_encoder(
    pipeline: TextPipeline, pretrained: Run
) -> None:
    run = run_text(pipeline.results, pipeline.root, "task=agnews", f"init_from={pretrained.path}")
    assert run.manifest.initial.task == "agnews_mlm"
    assert run.manifest.data["tokenizer_sha256"] == (pretrained.manifest.data["tokenizer_sha256"])
    assert run.path != pipeline.teacher.path


def test_pre_training_on_other_tokens_is_refused(
    pipeline: TextPipeline, pretrained: Run, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"the tokenizer of .* differs from that of this data"):
        run_text(
            tmp_path,
            pipeline.root,
            "task=agnews",
            f"init_from={pretrained.path}",
            "data.lowercase=false",
        )
    with pytest.raises(UserError, match=r"embed\.weight: there \(400, 16\), here \(410, 16\)"):
        run_text(
            tmp_path,
            pipeline.root,
            "task=agnews",
            f"init_from={pretrained.path}",
            "data.vocab_size=410",
        )


EXCERPT = (
    "task=wikitext",
    "data.name=wikitext2_excerpt",
    "data.max_length=64",
    "data.batch_tokens=2048",
    "data.vocab_size=400",
    "model.dim=16",
    "model.heads=2",
    "model.depth=2",
    "recipe.epochs=2",
    "recipe.warmup_epochs=0",
    "recipe.batch_size=16",
    "trainer.cpu_threads=1",
    "callbacks.progress_bar=false",
    "callbacks.diagnostic_samples=8",
    "logger=csv",
)


@pytest.fixture(scope="module")
def masked_record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All stages on the excerpt of WikiText-2 that is in the package."""
    results = tmp_path_factory.mktemp("wikitext") / "results"
    cache = f"data.cache={results.parent / 'cache'}"
    train(train_config(results, *EXCERPT, cache, attention=("attention=softmax",), tiny=()))
    train(train_config(results, *EXCERPT, cache, tiny=()))
    run_distill(results)
    record = read_json(run_evaluate(results, "max_test_rows=null", "fidelity_samples=8"))
    run_report(results)
    record["tables"] = (results / "report" / "tables.md").read_text()
    record["results"] = results
    return record


def test_masked_language_model_goes_through_all_stages(masked_record: dict[str, Any]) -> None:
    rows = {row["key"]: row for row in masked_record["rows"]}
    assert masked_record["objective"] == "mlm"
    assert masked_record["samples"] == "blocks of text"
    assert masked_record["test"]["rows"] == masked_record["test"]["of"]
    for key in ("teacher", "asap", "truncated_1", "control_uniform", "softmax_trained"):
        row = rows[key]
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert 1 < row["perplexity"] < 400
        assert 1 < row["val_perplexity"] < 400
    assert rows["teacher"]["agreement"] == 1.0
    assert rows["teacher"]["val_perplexity"] != rows["teacher"]["perplexity"]
    assert "baseline_svm" not in rows


def test_validation_perplexity_is_that_of_the_training(masked_record: dict[str, Any]) -> None:
    """The masks of an evaluation are drawn once, whatever the stage and the batches."""
    teacher = next(row for row in masked_record["rows"] if row["key"] == "teacher")
    trained = masked_record["manifests"]["train"]["best_val_perplexity"]
    assert teacher["val_perplexity"] == pytest.approx(trained, rel=1e-4)


def test_tables_show_perplexities_in_place_of_accuracies(masked_record: dict[str, Any]) -> None:
    tables = masked_record["tables"]
    assert "## wikitext2_excerpt, masked tokens, n ≤ 64, with qk_norm" in tables
    assert "| perplexity | validation perplexity | agreement % |" in tables
    assert "accuracy %" not in tables
    added = ("tables", "results")
    record = typed({key: value for key, value in masked_record.items() if key not in added})
    summary = summary_lines([Group("x", [record])])
    assert any(line.startswith("| test perplexity |") for line in summary)


def test_maps_of_a_masked_language_model_are_compared_by_perplexity(
    masked_record: dict[str, Any], tmp_path: Path
) -> None:
    """Fitted on the predictions of masked tokens, all layers together; then every map measured."""
    results = tmp_path / "results"
    shutil.copytree(masked_record["results"], results)
    folder = run_distill(results, "calibration=end_to_end", *FEW_UPDATES)
    kl = load_artifact(folder).identity["prediction_kl"]
    assert all(each["after"] <= each["before"] for each in kl.values())
    assert kl.keys() == {"maps", "controls"}
    record = read_json(run_evaluate(results, f"artifact={folder}", "maps=all"))
    assert "ridge + learned slices + end to end" in record["maps"]["asap"]["label"]
    run_report(results)
    assert list((results / "report" / "figures").glob("*-accuracy_latency.png"))
    _, _, table = (
        (results / "report" / "tables.md").read_text().partition("Every map and truncation")
    )
    assert "| n | perplexity | KL |" in table
    assert "accuracy" not in table


def test_budget_of_a_masked_language_model_is_of_latency(
    masked_record: dict[str, Any], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(masked_record["results"], results)
    small = [*CALIBRATION, *BUDGET, f"paths.results={results}"]
    with pytest.raises(UserError, match=r"budget\.accuracy_drop=1\.0 is in points of accuracy"):
        distill_within_budget(
            composed("distill", [*small, "budget.accuracy_drop=1"], DistillConfig)
        )
    ratio = "budget.latency_ratio=100"
    folder = distill_within_budget(composed("distill", [*small, ratio], DistillConfig))
    budget = load_artifact(folder).identity["budget"]
    assert budget["model_ms"] <= 100 * budget["teacher_model_ms"]
    data = run_data(Run(folder.parents[1]), WHERE_IT_WAS, 8, torch.device("cpu"))
    data.setup()
    assert budget["rows"] == data.val_dataloader().num_samples


def test_corrupted_images_are_no_texts(pipeline: TextPipeline) -> None:
    with pytest.raises(UserError, match=r"corruption\.name=noise is for images"):
        run_evaluate(pipeline.results, *EVALUATED, "corruption.name=noise")


def test_published_sinkformer_goes_through_all_stages(
    pipeline: TextPipeline, tmp_path: Path
) -> None:
    tiny = [word for word in TINY_TEXT if not word.startswith("data.length_multiple")]
    config = train_config(
        tmp_path,
        "experiment=sinkformer_imdb",
        f"data.root={pipeline.root}",
        f"data.cache={pipeline.root / 'cache'}",
        "recipe.lr_drop_epoch=1",
        "trainer.log_every_n_steps=1",
        attention=(),
        tiny=tuple(tiny),
    )
    run = train(config)
    with next(run.path.rglob("metrics.csv")).open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert rates[: len(rates) // 2] == pytest.approx([3e-3] * (len(rates) // 2))
    assert rates[len(rates) // 2 :] == pytest.approx([3e-4] * (len(rates) // 2))
    run_distill(tmp_path)
    record = read_json(run_evaluate(tmp_path, *EVALUATED))
    rows = {row["key"]: row for row in record["rows"]}
    assert rows["teacher"]["label"] == "Sinkhorn teacher, 3 half-steps"
    assert "truncated_1" not in rows
    assert record["test"] == {"rows": 48, "of": 10_000}
    run_report(tmp_path)
    tables = (tmp_path / "report" / "tables.md").read_text()
    assert "## imdb (subset), n ≤ 48, Sinkformer of 3 half-steps, without qk_norm" in tables
    assert "training and test rows pooled and dealt again" in tables


def test_inputs_recorded_in_a_text_teacher_have_no_padding(pipeline: TextPipeline) -> None:
    """Texts differ in length; what is timed is the beginning that the longest have in common."""
    path = run_benchmark(
        pipeline.results,
        "inputs=recorded",
        f"teacher={pipeline.teacher.path}",
        "cpu.n=[4,8,64]",
        "cpu.tokens=128",
    )
    record = read_json(path)
    assert [row["n"] for row in record["rows"]] == [4, 8]
    assert record["left_out"] == [
        "n = 64 is left out: the teacher's inputs have 48 tokens or fewer"
    ]
    assert {cell["status"] for row in record["rows"] for cell in row["cells"]} == {"timed"}


class Killed(Exception):
    pass


class KillInSecondEpoch(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1:
            raise Killed


@pytest.mark.parametrize("task", ["agnews", "agnews_mlm"])
def test_resumed_run_ends_in_the_same_weights(
    pipeline: TextPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Order, masks and dropout of an epoch follow from the seed and the epoch."""
    whole = run_text(tmp_path / "whole", pipeline.root, f"task={task}")
    build = training_fit.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(training_fit, "build_callbacks", lambda *a: [*build(*a), KillInSecondEpoch()])
        with pytest.raises(Killed):
            run_text(tmp_path / "parts", pipeline.root, f"task={task}")
    resumed = run_text(tmp_path / "parts", pipeline.root, f"task={task}")
    assert resumed.manifest.resumed_from == "last.ckpt"
    found = load_tensors(resumed.weights)
    for name, tensor in load_tensors(whole.weights).items():
        assert torch.equal(tensor, found[name]), name


def test_tokenizer_of_a_run_survives_a_resume_with_other_texts(
    pipeline: TextPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = text_root(tmp_path / "texts", "agnews")
    build = training_fit.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(training_fit, "build_callbacks", lambda *a: [*build(*a), KillInSecondEpoch()])
        with pytest.raises(Killed):
            run_text(tmp_path, root, "task=agnews")
    (file,) = tmp_path.rglob(f"runs/**/{FILE}")
    before = file.read_bytes()
    make_folder(root, TEXT_DATASETS["agnews"], train=120)
    with pytest.raises(UserError, match=r"data_content\.train_sha256: saved"):
        run_text(tmp_path, root, "task=agnews")
    assert file.read_bytes() == before


def test_other_tokenizer_in_the_run_is_refused(pipeline: TextPipeline, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(pipeline.results / "runs" / "agnews", results / "runs" / "agnews")
    name = pipeline.teacher.path.relative_to(pipeline.results)
    imposter = train_tokenizer(["other texts have other tokens"], 330, lowercase=True)
    save_tokenizer(results / name / FILE, imposter)
    with pytest.raises(UserError, match=r"token ids mean other tokens"):
        run_evaluate(results, *EVALUATED, f"teacher={results / name}")


def test_padded_texts_take_every_step_and_a_budget(pipeline: TextPipeline, tmp_path: Path) -> None:
    """Learned slices, all layers together, then a choice by layer, each on padded batches."""
    results = tmp_path / "results"
    shutil.copytree(pipeline.results, results)
    teacher = Run(results / pipeline.teacher.path.relative_to(pipeline.results))
    small = [f"teacher={teacher.path}", *FEW_UPDATES]
    folder = run_distill(results, "calibration=end_to_end", *small)
    for row in read_json(folder / "fidelity.json"):
        assert row["kl_learned_slices"] <= row["kl_ridge"]
    budget = [*CALIBRATION, *small, *BUDGET, f"paths.results={results}", "budget.accuracy_drop=5"]
    chosen = load_artifact(distill_within_budget(composed("distill", budget, DistillConfig))).about
    record = read_json(run_evaluate(results, *EVALUATED, f"artifact={folder}", "maps=all"))
    labels = [row["label"] for row in record["rows"]]
    assert any("ridge + learned slices + end to end" in x["label"] for x in record["maps"].values())
    name = map_label(chosen, control=False)
    assert any(label.startswith(name) for label in labels)
    assert name.startswith("ASAP") is not chosen.without_asap
    assert record["drift"].keys() == {*load_artifact(folder).layers}


@pytest.mark.parametrize(("name", "step"), [("kl", "kl"), ("sequential", "learned_slices")])
def test_padded_texts_are_closer_after_each_calibration(
    pipeline: TextPipeline, name: str, step: str
) -> None:
    few = ("calibration.kl.updates=5", "calibration.learned_slices.updates=5")
    teacher = f"teacher={pipeline.teacher.path}"
    folder = run_distill(
        pipeline.results, f"calibration={name}", "calibration.candidates=6", teacher, *few
    )
    rows = read_json(folder / "fidelity.json")
    assert all(row[f"kl_{step}"] <= row["kl_ridge"] for row in rows)
    assert any(row[f"kl_{step}"] < row["kl_ridge"] for row in rows)


def test_text_encoder_is_compiled_by_the_library(pipeline: TextPipeline) -> None:
    net = load_net(pipeline.teacher)
    data = run_data(pipeline.teacher, WHERE_IT_WAS, 8, torch.device("cpu"))
    data.setup()
    fit, _ = data.calibration_dataloaders(samples=32, holdout=8, batch_size=8, seed=0)
    steps = ("ridge", "learned_slices")
    compiled = asap_exp.compile(
        net, fit, slices=2, candidates=6, steps=steps, learned_slices=FEW, progress=False
    )
    assert all(layer.attend.name == "asap" for layer in attention_layers(compiled).values())
    artifact = compiled.asap_artifact
    batches = list(fit)
    assert artifact.identity["calibration_set"]["rows"] == sum(len(x) for x, _ in batches[:-1])
    assert any(x.key_padding_mask is not None for x, _ in batches)
    batch = batches[0]
    assert asap_exp.drift(compiled, batch).keys() == attention_layers(compiled).keys()
