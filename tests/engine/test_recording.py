"""Recorded steps do what Lightning's own do."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from asap_exp.core.cuda_graph import Recorder, recorded
from asap_exp.core.errors import UserError
from asap_exp.core.fixed_tensors import FixedTensors, shape_of
from asap_exp.core.forward_graphs import ForwardGraphs
from asap_exp.core.runs import Run
from asap_exp.core.tensors import load_tensors
from asap_exp.core.training_log import training_curves
from asap_exp.data.tokens import TokenBatch
from asap_exp.engine import optimisers
from asap_exp.engine.masked_portions import IGNORED, rounded_up
from asap_exp.engine.module import Classifier
from asap_exp.engine.nan_check import NonFiniteLoss
from asap_exp.engine.recording import RecordedTraining
from asap_exp.engine.recording_choice import refusal
from asap_exp.train import trainer as training
from tests.data.sentences import text_root
from tests.stages import TINY_TEXT, train_config


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Record the steps of every training, without a GPU as plain calls; return the recorders."""
    made: list[Recorder] = []
    record = recorded if torch.cuda.is_available() else lambda call, pool: call

    def set_recording(config: Any, module: Classifier, *_: Any) -> None:
        if config.trainer.cuda_graphs is not False:
            made.append(Recorder(record=record))
            module.record_steps = partial(RecordedTraining, recorder=made[-1])

    monkeypatch.setattr(training, "set_recording", set_recording)
    return made


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have AdamW update all weights in one kernel, as on a GPU."""
    make = optimisers.adamw
    monkeypatch.setattr(
        optimisers,
        "adamw",
        lambda groups, lr, **options: make(groups, lr, **options | {"fused": True}),
    )


LONG = (
    "trainer.compile=false",
    "trainer.precision=32-true",
    "trainer.limit_train_batches=7",
    "trainer.log_every_n_steps=2",
    # Adam divides by the root of squared gradients: this keeps rounding from growing there.
    "recipe.optimizer_options={eps: 1e-3}",
)
SGD = ("recipe.optimizer=sgd", "recipe.optimizer_options={fused: true}")
CASES = {
    "plain": (),
    "clipped by value": ("trainer.gradient_clip_algorithm=value", "recipe.clip_norm=0.01"),
    "without clipping": ("recipe.clip_norm=null",),
    "mixed precision": ("trainer.precision=bf16-mixed", *SGD),
    "in parts": ("trainer.micro_batch=5",),
    "mixed images": ("data.augment.mixup=0.8", "data.augment.cutmix=1.0"),
    "averaged": ("recipe.ema_decay=0.9",),
    "other optimiser": SGD,
    "update after the graph": ("recipe.optimizer=sgd", "recipe.optimizer_options=null"),
    "schedule of timm": ("recipe.schedule=step", "recipe.schedule_options={decay_epochs: 1}"),
    "dropout": ("model.dropout=0.2", "model.drop_path=0.1"),
}


def trained(results: Path, *options: str, **more: Any) -> Run:
    return training.train(train_config(results, *LONG, *options, **more))


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_recorded_run_is_the_ordinary_run(
    tmp_path: Path, recorders: list[Recorder], fused: None, options: tuple[str, ...]
) -> None:
    plain = trained(tmp_path / "plain", *options, "trainer.cuda_graphs=false")
    run = trained(tmp_path / "recorded", *options)
    assert recorders[0].count
    assert run.manifest.compile_seconds > 0
    assert plain.manifest.compile_seconds is None
    assert_same_run(run, plain)


def assert_same_run(run: Run, plain: Run) -> None:
    """Compare two runs; where tensors lie in memory changes a product's last bits."""
    expected = load_tensors(plain.weights)
    for name, weight in load_tensors(run.weights).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    for row, other in zip(training_curves(run.path), training_curves(plain.path), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-3)
    assert losses_of_steps(run.path) == pytest.approx(losses_of_steps(plain.path), rel=1e-4)


def losses_of_steps(path: Path) -> dict[int, float]:
    """Return the logged loss of each step that has one."""
    (log,) = path.glob("logs/**/metrics.csv")
    rows = list(csv.DictReader(log.open()))
    found = {
        int(row["step"]): float(row["train/loss_step"]) for row in rows if row["train/loss_step"]
    }
    assert len(found) > 3
    assert all(step % 2 for step in found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("task", ["agnews", "agnews_mlm"])
def test_recorded_run_on_texts_is_the_ordinary_run(
    tmp_path: Path, recorders: list[Recorder], fused: None, task: str
) -> None:
    root = text_root(tmp_path, "agnews")
    where = (f"task={task}", f"data.root={root}", f"data.cache={tmp_path / 'cache'}")
    plain = trained(tmp_path / "plain", *where, "trainer.cuda_graphs=false", tiny=TINY_TEXT)
    run = trained(tmp_path / "recorded", *where, tiny=TINY_TEXT)
    assert recorders[0].count
    assert_same_run(run, plain)


class AtTheEnd(L.Callback):
    """Callback that keeps weights and step of a run that stops with an exception."""

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.weights, self.step = list(pl_module.parameters()), trainer.global_step


DIVERGING = ("recipe.lr=1e30", "recipe.clip_norm=null", "recipe.warmup_epochs=0")


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_a_recorded_run_with_the_layer_and_its_step(
    tmp_path: Path, recorders: list[Recorder], fused: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights explode in the first step; the second loss is not finite, and is read later."""
    end, build = AtTheEnd(), training.build_callbacks
    monkeypatch.setattr(training, "build_callbacks", lambda *a: [*build(*a), end])
    with pytest.raises(NonFiniteLoss, match=r"at step 1: .*layer"):
        trained(tmp_path, *DIVERGING)
    assert end.step > 1, "the loss is read some steps later"
    assert all(weight.isfinite().all() for weight in end.weights), "no step after the bad loss"


def test_batches_of_masked_tokens_are_filled_with_targets_that_do_not_count() -> None:
    ids = torch.zeros(4, 64, dtype=torch.int64)
    positions, targets = torch.arange(37), torch.arange(37)
    filled, more = rounded_up((TokenBatch(ids, None, positions), targets))
    assert len(more) == len(filled.positions) == 40
    assert torch.equal(more[:37], targets)
    assert (more[37:] == IGNORED).all()
    logits = torch.randn(256, 50)
    loss = torch.nn.functional.cross_entropy
    torch.testing.assert_close(
        loss(logits[filled.positions], more), loss(logits[positions], targets)
    )


def test_fixed_tensors_keep_their_values_where_asked() -> None:
    fixed = FixedTensors((torch.zeros(3), None, torch.zeros(2, dtype=torch.int64)))
    new = (torch.ones(3), None, torch.ones(2, dtype=torch.int64))
    assert shape_of(fixed.tree) == shape_of(new)
    fixed.fill(new, keep=torch.tensor(True))
    assert fixed.tree[0].sum() == fixed.tree[2].sum() == 0
    fixed.fill(new, keep=torch.tensor(False))
    assert torch.equal(fixed.tree[0], new[0])
    assert torch.equal(fixed.tree[2], new[2])


class WatchesGradients(L.Callback):
    """Callback that is called within a step."""

    def on_before_optimizer_step(self, *args: Any) -> None: ...


class OwnStep(Classifier):
    """Classifier whose step a graph would leave out."""

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        return super().training_step(batch, batch_index)


@pytest.mark.parametrize(
    ("options", "kind", "callbacks", "reason"),
    [
        ([], Classifier, [], None),
        ([], OwnStep, [], "OwnStep has a training_step of its own"),
        ([], L.LightningModule, [], "LightningModule has a step of its own"),
        ([], Classifier, [L.Callback()], None),
        ([], Classifier, [WatchesGradients()], "WatchesGradients.on_before_optimizer_step"),
        ([], Classifier, [GradientAccumulationScheduler({0: 1})], "adds up the gradients"),
        (["trainer.precision=16-mixed"], Classifier, [], "float16"),
        (["trainer.accumulate_grad_batches=2"], Classifier, [], "accumulate_grad_batches"),
        (["trainer.detect_anomaly=true"], Classifier, [], "detect_anomaly"),
        (["trainer.devices=2"], Classifier, [], "2 devices exchange their gradients within a step"),
        (["trainer.compile_options={mode: max-autotune}"], Classifier, [], "graphs of its own"),
        (["trainer.compile_options={mode: default}"], Classifier, [], None),
    ],
)
def test_what_a_graph_cannot_hold_is_named(
    tmp_path: Path,
    options: list[str],
    kind: type[L.LightningModule],
    callbacks: list[L.Callback],
    reason: str | None,
) -> None:
    config = train_config(tmp_path, *options)
    arguments = {"net": torch.nn.Linear(2, 2), "recipe": config.recipe, "num_classes": 2, "seed": 0}
    made = kind(**(arguments if issubclass(kind, Classifier) else {}))
    found = refusal(config, made, torch.device("cuda"), callbacks)
    assert found is None if reason is None else reason in found
    assert refusal(config, made, torch.device("cpu"), callbacks) == "there is no GPU"


@pytest.mark.slow
def test_graphs_that_are_asked_for_and_not_possible_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.cuda_graphs=true is not possible: there is no"):
        trained(tmp_path, "trainer.cuda_graphs=true", "trainer.accelerator=cpu")


def failing(call: Any, pool: Any) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_step_that_cannot_be_recorded_runs_kernel_by_kernel_with_a_word(
    capsys: pytest.CaptureFixture,
) -> None:
    recorder = Recorder(record=failing)
    assert recorder(lambda: None) is None
    assert not recorder.works
    assert "without CUDA graphs: one cannot be recorded (operation not" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"cuda_graphs=true, but a step cannot be recorded"):
        Recorder(required=True, record=failing)(lambda: None)


def test_last_batch_is_filled_up_to_the_shape_that_was_recorded() -> None:
    shapes = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        shapes.append(len(x))
        return 2 * x

    predict = ForwardGraphs(forward, Recorder(record=lambda call, pool: call))
    batches = [torch.randn(4, 3), torch.randn(4, 3), torch.randn(2, 3)]
    for batch in batches:
        torch.testing.assert_close(predict(batch), 2 * batch)
    assert shapes == [4, 4, 4]
