"""distill with a budget on the tiny teacher: the artifact, what it reaches, how it is evaluated."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.attention import (
    AsapAttention,
    CoarseAttention,
    SinkhornAttention,
    SoftmaxAttention,
    attention_layers,
    swapped,
)
from asap_exp.calibration.artifact import load_artifact
from asap_exp.compiling import load_compiled
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.team import alone
from asap_exp.data import ImageDataModule
from asap_exp.distill import candidates
from asap_exp.distill.budget import distill_within_budget
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import artifact_key, asked
from asap_exp.models import load_net
from tests.composed import composed
from tests.conftest import Pipeline
from tests.stages import CALIBRATION, run_evaluate, run_train

pytestmark = pytest.mark.slow

SMALL = (
    "budget.slices=[2,3]",
    "budget.refine=[0]",
    "budget.truncations=[1,2,10]",
    "budget.relaxed_truncations=[]",
    "budget.latency.batch_size=4",
    "budget.latency.rounds=3",
)
ORDER = (
    "softmax",
    "Sinkhorn, T' = 1",
    "Sinkhorn, T' = 2",
    "ASAP, 2",
    "ASAP, 3",
    "the teacher's",
    "coarse duals, 2",
    "coarse duals, 3",
)


CLOCK = candidates.ValidationScorer.layer_ms, candidates.ValidationScorer.model_ms


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's time is its place in ORDER, the model's that of its layers and 2 ms: no noise."""

    def layer_ms(self: candidates.ValidationScorer, options: dict) -> dict:
        return {
            path: {label: place(label) for label, _ in found} for path, found in options.items()
        }

    def model_ms(self: candidates.ValidationScorer, plans: dict) -> dict:
        layers = attention_layers(self.data.net)
        return {
            name: 2 + sum(place(label_of(plan.get(p, layers[p].attend))) for p in layers)
            for name, plan in plans.items()
        }

    monkeypatch.setattr(candidates.ValidationScorer, "layer_ms", layer_ms)
    monkeypatch.setattr(candidates.ValidationScorer, "model_ms", model_ms)


def place(label: str) -> float:
    (number,) = [number for number, start in enumerate(ORDER) if label.startswith(start)]
    return float(number + 1)


def label_of(attend: torch.nn.Module) -> str:
    if isinstance(attend, AsapAttention):
        return f"ASAP, {attend.theta.shape[1]}"
    if isinstance(attend, CoarseAttention):
        return f"coarse duals, {attend.tokens}"
    if isinstance(attend, SinkhornAttention):
        return f"Sinkhorn, T' = {attend.num_iters}" if attend.num_iters < 4 else "the teacher's"
    return "softmax"


def within(results: Path, *overrides: str) -> Path:
    given = [*CALIBRATION, *SMALL, f"paths.results={results}", *overrides]
    return distill_within_budget(composed("distill", given, DistillConfig))


def validation(pipeline: Pipeline, folder: Path) -> tuple[float, float]:
    """Accuracy of the teacher and of the artifact on the validation split, counted anew."""
    net = load_net(pipeline.teacher)
    data = ImageDataModule(pipeline.teacher.config.data, batch_size=64, seed=0)
    data.setup()
    artifact = load_artifact(folder)
    found = []
    for attends in ({}, {path: artifact.attention(path) for path in artifact.layers}):
        with swapped(net, attends), torch.no_grad():
            hits = [net(x).argmax(dim=-1) == y for x, y in data.val_dataloader()]
        found.append(torch.cat(hits).double().mean().item())
    return found[0], found[1]


@pytest.mark.parametrize("drop", [0.0, 5.0])
def test_accuracy_is_within_the_budget_on_the_validation_split(
    pipeline: Pipeline, drop: float, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = within(pipeline.results, f"budget.accuracy_drop={drop}")
    teacher, compiled = validation(pipeline, folder)
    assert compiled >= teacher - drop / 100 - 1e-9
    budget = load_artifact(folder).identity["budget"]
    assert budget["accuracy"] == pytest.approx(compiled)
    assert budget["teacher_accuracy"] == pytest.approx(teacher)
    assert (budget["accuracy_drop"], budget["split"]) == (drop, "validation")
    assert budget["model_ms"] <= budget["teacher_model_ms"]
    out, err = capsys.readouterr()
    assert "Left out, since the teacher itself has T = 4: Sinkhorn, T' = 10\n" in out
    said = [line for line in err.splitlines() if line.startswith("Candidate")]
    assert [line.partition(" slices, ")[0] for line in said] == [
        "Candidate 1 of 2: ASAP, 2",
        "Candidate 2 of 2: ASAP, 3",
    ]
    for layer in budget["layers"].values():
        assert layer["became"] in out


def test_layers_and_models_are_timed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, real in zip(("layer_ms", "model_ms"), CLOCK, strict=True):
        monkeypatch.setattr(candidates.ValidationScorer, name, real)
    budget = load_artifact(within(pipeline.results, "budget.accuracy_drop=2")).identity["budget"]
    assert budget["accuracy"] >= budget["teacher_accuracy"] - 0.02 - 1e-9
    for layer in budget["layers"].values():
        assert layer["layer_ms"] > 0
        assert layer["teacher_layer_ms"] > 0
    assert budget["model_ms"] > 0


def test_wrong_attention_is_not_taken_however_fast(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(attend: object, inputs: object) -> float:
        return 0.5 if isinstance(attend, SoftmaxAttention) else 0.0

    monkeypatch.setattr(candidates.ValidationScorer, "layer_ms", CLOCK[0])
    monkeypatch.setattr(candidates, "gate_error", error)
    artifact = load_artifact(within(pipeline.results, "budget.accuracy_drop=100"))
    assert "softmax" not in {a["name"] for a in artifact.identity["attentions"].values()}
    assert "blocks.0.attn, softmax is wrong by 0.5" in capsys.readouterr().err
    monkeypatch.setattr(candidates, "gate_error", lambda *_: float("nan"))
    with pytest.raises(UserError, match=r"teacher's own attention at blocks\.0\.attn is wrong"):
        within(pipeline.results, "budget.accuracy_drop=99")


def test_any_loss_allowed_gives_the_fastest_attention_everywhere(pipeline: Pipeline) -> None:
    folder = within(pipeline.results, "budget.accuracy_drop=100")
    artifact = load_artifact(folder)
    assert {a["name"] for a in artifact.identity["attentions"].values()} == {"softmax"}
    assert artifact.tensors == {}
    assert read_json(folder / "fidelity.json")[0]["r_squared"] is None


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0])
def test_latency_is_within_the_budget_and_the_rest_of_it_is_used(
    pipeline: Pipeline, ratio: float
) -> None:
    budget = load_artifact(within(pipeline.results, f"budget.latency_ratio={ratio}")).identity[
        "budget"
    ]
    reached = budget["model_ms"] / budget["teacher_model_ms"]
    assert ratio - 0.3 < reached <= ratio
    if ratio == 1.0:
        assert budget["kl"] == pytest.approx(0, abs=1e-9)


def test_latency_that_nothing_reaches_is_refused_with_what_can_be(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"latency_ratio=0\.1 cannot be reached.* takes 0\.286"):
        within(pipeline.results, "budget.latency_ratio=0.1")


def test_relaxed_truncations_are_options_too(pipeline: Pipeline) -> None:
    """Of the only one there is it says so; slower than softmax, and closer to the teacher."""
    folder = within(
        pipeline.results,
        "budget.latency_ratio=0.7",
        "budget.slices=[]",
        "budget.truncations=[]",
        "budget.relaxed_truncations=[2,30]",
        "budget.relaxation=1.3",
    )
    artifact = load_artifact(folder)
    relaxed = {"name": "relaxed_sinkhorn", "num_iters": 2, "relaxation": 1.3, "eps": 1.0}
    assert set(map(str, artifact.identity["attentions"].values())) <= {
        str(relaxed),
        "{'name': 'softmax', 'eps': 1.0}",
    }
    became = [layer["became"] for layer in artifact.identity["budget"]["layers"].values()]
    assert "Sinkhorn, T' = 2, relaxed by 1.3" in became


def test_sizes_of_coarse_duals_are_options_too(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the four tokens two or three; here two are the fastest, and closest with softmax gone."""
    order = ("coarse duals, 2", "coarse duals, 3", *ORDER[:6])
    monkeypatch.setattr(sys.modules[__name__], "ORDER", order)
    sizes = ("budget.coarse_tokens=[2,3]", "calibration.coarse.choice=farthest")
    folder = within(pipeline.results, "budget.latency_ratio=0.4", "budget.slices=[]", *sizes)
    artifact = load_artifact(folder)
    kinds = list(artifact.identity["attentions"].values())
    assert {kind["name"] for kind in kinds} == {"coarse"}
    assert {kind["subset"] for kind in kinds} == {"farthest"}
    assert {kind["num_iters"] for kind in kinds} == {4}
    for layer, kind in zip(artifact.about.budget.layers.values(), kinds, strict=True):
        form = "one pass" if kind["one_pass"] else "two-sided"
        assert layer.became == f"coarse duals, {kind['tokens']} tokens, {form}, farthest"
    loaded = attention_layers(load_compiled(load_net(pipeline.teacher), folder))
    assert {layer.attend.name for layer in loaded.values()} == {"coarse"}


def test_budget_without_sizes_has_the_name_that_it_had(pipeline: Pipeline) -> None:
    config = composed("distill", [*CALIBRATION, "budget.accuracy_drop=1"], DistillConfig)
    assert "coarse_tokens" not in config.budget.identity()
    config.budget.coarse_tokens = [2]
    assert config.budget.identity()["coarse_tokens"] == [2]


@pytest.mark.parametrize("setting", ["choice=grid", "weights=voronoi", "num_iters=3"])
def test_budgets_of_other_tokens_are_other_compilations(setting: str) -> None:
    """The second would be taken for the first, and not be made."""
    given = [*CALIBRATION, "budget.accuracy_drop=1", "budget.coarse_tokens=[2]"]
    configs = [
        composed("distill", [*given, *more], DistillConfig)
        for more in ((), ("calibration.coarse.seed=7",), (f"calibration.coarse.{setting}",))
    ]
    usual, unread, other = (artifact_key(config, ["0"]) for config in configs)
    assert usual == unread != other
    assert usual.keys() == {"calibration", "layers", "budget"}


def test_sizes_that_the_model_cannot_have_are_refused_before_anything_is_fitted(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("budget.accuracy_drop=1", "calibration.coarse.choice=grid", "check=true")
    with pytest.raises(UserError, match=r"^calibration\.coarse\.choice='grid' cannot lay out 4"):
        within(
            pipeline.results, *given, "budget.coarse_tokens=[2]", "calibration.coarse.grid_width=3"
        )
    config = composed("distill", [*CALIBRATION, *given, "budget.coarse_tokens=[4]"], DistillConfig)
    config.paths.results = str(pipeline.results)
    asked(config, alone(config.together))
    assert "budget.coarse_tokens=4 takes all 4 tokens" in capsys.readouterr().err


def test_plan_without_asap_is_evaluated_by_the_name_of_what_it_is(pipeline: Pipeline) -> None:
    folder = within(pipeline.results, "budget.accuracy_drop=100")
    record = read_json(run_evaluate(pipeline.results, f"artifact={folder}"))
    rows = {row["key"]: row for row in record["rows"]}
    assert (rows["asap"]["label"], rows["asap"]["group"]) == (
        "softmax by budget, all layers",
        "budget",
    )
    assert rows["asap_layer_0"]["label"] == "softmax, layer 0 alone"
    assert rows["asap"]["accuracy"] == rows["softmax_swapped"]["accuracy"]
    assert "control_uniform" in rows
    assert rows.keys().isdisjoint(("control_zero", "control_query")), "there is no map of slices"
    assert "ASAP" not in "".join(row["label"] for row in record["rows"])


def test_artifact_of_mixed_kinds_is_evaluated_like_any_other(pipeline: Pipeline) -> None:
    """5 + 2 of the teacher's 6 + 6 ms: ASAP with three slices in one layer, T' = 1 in the other."""
    folder = within(pipeline.results, "budget.latency_ratio=0.65", "budget.truncations=[1]")
    artifact = load_artifact(folder)
    kinds = {path: options["name"] for path, options in artifact.identity["attentions"].items()}
    assert sorted(kinds.values()) == ["asap", "sinkhorn"]
    record = read_json(run_evaluate(pipeline.results, f"artifact={folder}"))
    rows = {row["key"]: row for row in record["rows"]}
    assert rows["asap"]["label"] == "by budget, all layers"
    asap = next(path for path, kind in kinds.items() if kind == "asap")
    other = next(path for path, kind in kinds.items() if kind != "asap")
    assert not artifact.zero_weights(asap).weight.any()
    assert artifact.query_features_only(asap).theta.shape[1] == 0
    for control in (artifact.zero_weights(other), artifact.query_features_only(other)):
        assert type(control) is type(artifact.attention(other))
    assert set(record["drift"]) == set(kinds)
    loaded = attention_layers(load_compiled(load_net(pipeline.teacher), folder))
    assert {path: layer.attend.name for path, layer in loaded.items()} == kinds


def test_budget_is_part_of_what_names_the_artifact(pipeline: Pipeline) -> None:
    folders: list[Any] = [
        within(pipeline.results, "budget.accuracy_drop=100"),
        within(pipeline.results, "budget.accuracy_drop=99"),
        pipeline.artifact,
    ]
    assert len(set(folders)) == 3
    assert within(pipeline.results, "budget.accuracy_drop=100") == folders[0]


def test_validation_images_must_fill_the_timed_batch(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"budget\.latency\.batch_size=5000 is more than the 126"):
        within(pipeline.results, "budget.accuracy_drop=1", "budget.latency.batch_size=5000")


def test_cuda_graphs_need_a_gpu(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"budget\.latency\.cuda_graph=true needs a GPU"):
        within(pipeline.results, "budget.accuracy_drop=1", "budget.latency.cuda_graph=true")


@pytest.mark.parametrize("train_on", ["train", "train+val"])
def test_validation_samples_that_the_teacher_has_seen_are_named(
    train_on: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(tmp_path, f"data.train_on={train_on}", "recipe.keep=last")
    folder = within(tmp_path, "budget.accuracy_drop=100")
    seen = train_on == "train+val"
    assert load_artifact(folder).identity["budget"]["seen_in_training"] is seen
    assert ("of data that it has seen" in capsys.readouterr().out) is seen
