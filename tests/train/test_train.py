"""Outputs of a training run, and the settings it refuses."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from asap_exp.attention import MultiHeadAttention, SinkhornAttention
from asap_exp.core.errors import UserError
from asap_exp.core.nan_check import first_non_finite
from asap_exp.core.tensors import fingerprint, load_tensors
from asap_exp.core.training_log import training_curves
from asap_exp.data import build_data
from asap_exp.engine import nan_check as guard
from asap_exp.engine import optimisers
from asap_exp.engine.diagnostics import describe_plans
from asap_exp.engine.nan_check import LossCheck, NonFiniteLoss
from asap_exp.models import build_net, compile_net, load_net
from asap_exp.train import trainer as training_fit
from tests.conftest import Pipeline
from tests.stages import run_train, train_config

pytestmark = pytest.mark.slow


def test_manifest_says_what_made_the_teacher(shared_pipeline: Pipeline) -> None:
    run = shared_pipeline.teacher
    manifest = run.manifest
    assert manifest.status == "finished"
    assert manifest.seed == 0
    assert manifest.epochs == 3
    assert manifest.data["train_on"] == "train"
    assert manifest.data["train_rows"] + manifest.data["val_rows"] == 1257
    assert manifest.teacher_sha256 == fingerprint(load_tensors(run.weights))
    assert manifest.versions["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert manifest.config["attention"]["num_iters"] == 4
    assert manifest.wall_seconds > manifest.train_seconds > 0
    assert "root" not in manifest.config["data"], "a record names no folder of one machine"


def test_test_split_is_not_touched_by_training(shared_pipeline: Pipeline) -> None:
    assert not [key for key in shared_pipeline.teacher.manifest.data if "test" in key]


def test_seed_zero_is_a_seed_and_seeds_differ(tmp_path: Path, shared_pipeline: Pipeline) -> None:
    again = run_train(tmp_path)
    assert again.manifest.teacher_sha256 == shared_pipeline.teacher.manifest.teacher_sha256
    other = run_train(tmp_path, "seed=1")
    assert other.manifest.teacher_sha256 != again.manifest.teacher_sha256


def test_diagnostics_are_logged_for_every_layer_and_epoch(shared_pipeline: Pipeline) -> None:
    curves = training_curves(shared_pipeline.teacher.path)
    assert [row["epoch"] for row in curves] == [0, 1, 2]
    for row in curves:
        for layer in (0, 1):
            assert 0 <= row[f"plan/{layer}/column_error"] < 1
            assert 0 < row[f"plan/{layer}/entropy"] <= 1
            assert row[f"plan/{layer}/largest_logit"] > 0
        assert {"train/loss_epoch", "val/accuracy", "val/loss"} <= row.keys()


@pytest.mark.parametrize("every", [1, 2])
def test_loss_is_logged_at_its_steps_and_as_the_mean_of_each_epoch(
    tmp_path: Path, every: int
) -> None:
    run = run_train(tmp_path, f"trainer.log_every_n_steps={every}")  # three epochs of four steps
    with next(run.path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    steps = {int(r["step"]): float(r["train/loss_step"]) for r in rows if r["train/loss_step"]}
    assert list(steps) == list(range(every - 1, 12, every))
    means = [float(r["train/loss_epoch"]) for r in rows if r["train/loss_epoch"]]
    assert len(means) == 3
    if every == 1:
        losses = torch.tensor(list(steps.values()))
        assert means == pytest.approx(losses.view(3, 4).mean(dim=1).tolist())


def test_kept_epoch_is_the_best_on_validation(shared_pipeline: Pipeline) -> None:
    manifest = shared_pipeline.teacher.manifest
    scores = [row["val/accuracy"] for row in training_curves(shared_pipeline.teacher.path)]
    assert manifest.best_val_accuracy == pytest.approx(max(scores))
    assert scores[manifest.kept_epoch] == pytest.approx(max(scores))


@pytest.mark.parametrize("average", [(), ("recipe.ema_decay=0.9",)], ids=["raw", "averaged"])
def test_weights_on_disk_are_those_with_the_best_score(
    tmp_path: Path, average: tuple[str, ...]
) -> None:
    run = run_train(tmp_path, "recipe.epochs=8", "recipe.lr=0.3", *average)
    assert run.manifest.kept_epoch < 7, "the last epoch's weights are others"
    data = build_data(run.config.data, batch_size=32, seed=0, device=torch.device("cpu"))
    data.setup()
    net, right, rows = load_net(run), 0, 0
    for images, labels in data.val_dataloader():
        right += int((net(images).argmax(-1) == labels).sum())
        rows += len(labels)
    assert run.manifest.best_val_accuracy == pytest.approx(right / rows)


def test_training_on_train_and_val_says_so(tmp_path: Path) -> None:
    run = run_train(tmp_path, "data.train_on=train+val", "recipe.keep=last")
    assert run.manifest.data["train_rows"] == 1257
    assert run.manifest.data["train_on"] == "train+val"
    assert run.manifest.best_val_accuracy is None


def test_training_changes_the_weights_and_lowers_the_loss(tmp_path: Path) -> None:
    run = run_train(tmp_path, "recipe.epochs=12", "trainer.limit_train_batches=null")
    losses = [row["train/loss_epoch"] for row in training_curves(run.path)]
    assert losses[-1] < 0.8 * losses[0]


def test_asap_is_refused_with_the_commands_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run_train(tmp_path, attention=("attention=asap",))
    for command in ("asap_exp.train", "asap_exp.distill", "asap_exp.evaluate"):
        assert f"python -m {command}" in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_results_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"could not be written.*paths\.results=FOLDER"):
        run_train(tmp_path / "file" / "results")


def test_non_finite_loss_names_the_layer() -> None:
    net = build_net(train_config(Path("unused")))
    inputs = torch.randn(2, 1, 8, 8)
    torch.manual_seed(0)
    net.blocks[1].mlp.fc1.weight.data.normal_().mul_(8e37)  # finite, but not its products
    loss = torch.nn.functional.cross_entropy(net(inputs), torch.tensor([0, 1]))
    with pytest.raises(NonFiniteLoss, match=r"step 7: the output of layer blocks\.1\.mlp\.\w+"):
        LossCheck(loss, net, inputs, step=7).require_finite()


def test_non_finite_weights_are_named() -> None:
    net = build_net(train_config(Path("unused")))
    net.blocks[0].attn.qkv.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"the weights of layer blocks\.0\.attn\.qkv\.weight"):
        LossCheck(torch.tensor(float("nan")), net, torch.zeros(1, 1, 8, 8), step=0).require_finite()


class AtTheEnd(L.Callback):
    """Callback that keeps the weights of a run that stops with an exception."""

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.weights = list(pl_module.parameters())


DIVERGING = ("recipe.lr=1e30", "recipe.clip_norm=null", "recipe.warmup_epochs=0")


def test_diverging_run_stops_and_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, build = AtTheEnd(), training_fit.build_callbacks
    monkeypatch.setattr(training_fit, "build_callbacks", lambda *a: [*build(*a), end])
    with pytest.raises(NonFiniteLoss, match="layer"):
        run_train(tmp_path, *DIVERGING)
    assert all(weight.isfinite().all() for weight in end.weights), "no step after the bad loss"
    manifests = list(tmp_path.rglob("manifest.json"))
    assert json.loads(manifests[0].read_text())["status"] == "failed"


def test_layer_at_fault_is_looked_for_in_the_precision_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autocast = []

    def look(net: nn.Module, inputs: torch.Tensor) -> str:
        autocast.append(torch.is_autocast_enabled("cpu"))
        return "found"

    monkeypatch.setattr(guard, "first_non_finite", look)
    with pytest.raises(NonFiniteLoss, match="found"):
        run_train(tmp_path, *DIVERGING, "trainer.precision=bf16-mixed")
    assert autocast == [True]


def test_fused_optimiser_clips_under_mixed_precision_and_ends_where_the_plain_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("trainer.precision=bf16-mixed", "recipe.clip_norm=0.01")
    plain = run_train(tmp_path / "plain", *options)
    make = optimisers.adamw

    def fused_adamw(groups: list[dict], lr: float, *, fused: bool, **more: Any) -> Any:
        return make(groups, lr, fused=True, **more)

    monkeypatch.setattr(optimisers, "adamw", fused_adamw)
    fused = run_train(tmp_path / "fused", *options)
    expected = load_tensors(plain.weights)
    for name, weight in load_tensors(fused.weights).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(params=["blocks", "whole"])
def compiled(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """Return a network, and a copy that is compiled, or whose blocks are, and has run once."""
    net = build_net(train_config(Path("unused"))).eval()
    twin = copy.deepcopy(net)
    compile_net(twin, lengths_vary=request.param == "blocks", options={"backend": "aot_eager"})
    twin(torch.randn(2, 1, 8, 8))
    return net, twin


def test_compiled_blocks_keep_names_and_values(compiled: tuple[nn.Module, nn.Module]) -> None:
    net, twin = compiled
    inputs = torch.randn(2, 1, 8, 8)
    assert any(module._compiled_call_impl is not None for module in twin.modules())
    torch.testing.assert_close(twin(inputs), net(inputs))
    assert list(twin.state_dict()) == list(net.state_dict())


def test_compiled_layers_are_observed_all_the_same(compiled: tuple[nn.Module, nn.Module]) -> None:
    net, twin = compiled
    inputs = torch.randn(2, 1, 8, 8)
    assert describe_plans(twin, inputs) == pytest.approx(describe_plans(net, inputs), rel=1e-4)
    net.blocks[1].mlp.fc1.bias.data.fill_(3e38)
    twin.blocks[1].mlp.fc1.bias.data.fill_(3e38)
    assert first_non_finite(twin, inputs) == first_non_finite(net, inputs)


def test_trained_network_loads_with_its_attention(shared_pipeline: Pipeline) -> None:
    net = load_net(shared_pipeline.teacher)
    layers = [m for m in net.modules() if isinstance(m, MultiHeadAttention)]
    assert len(layers) == 2
    assert all(
        isinstance(layer.attend, SinkhornAttention) and layer.attend.num_iters == 4
        for layer in layers
    )
    assert not net.training
