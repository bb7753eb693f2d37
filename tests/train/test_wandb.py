"""What a training leaves on wandb: axes, the best validation, and the facts of its summary."""

from pathlib import Path
from typing import Any

import pytest

from asap_exp.core.objectives import OBJECTIVES
from asap_exp.engine.diagnostics import PLAN_NUMBERS
from asap_exp.train.trainer import SUMMARY, set_axes
from tests.stages import run_train
from tests.wandb_file import kinds, media


class Tracker:
    """Stands for wandb's run; keeps what is defined."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, Any]] = {}

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics[name] = options


@pytest.mark.parametrize(
    ("objective", "metric", "best"),
    [("classification", "val/accuracy", "max"), ("mlm", "val/loss", "min")],
)
def test_axes_are_step_and_epoch_and_the_best_and_last_are_kept(
    objective: str, metric: str, best: str
) -> None:
    tracker = Tracker()
    set_axes(tracker, OBJECTIVES[objective], layers=2)
    step, epoch = "trainer/global_step", {"step_metric": "epoch"}
    assert tracker.metrics.pop(metric) == {**epoch, "summary": f"{best},last"}
    assert tracker.metrics.pop("*") == {"step_metric": step}
    assert [tracker.metrics.pop(name) for name in (step, "epoch")] == 2 * [{"hidden": True}]
    assert {"train/loss_epoch", "plan/0/column_error", "plan/1/entropy"} < set(tracker.metrics)
    assert all(options["step_metric"] == "epoch" for options in tracker.metrics.values())


@pytest.mark.parametrize("what", PLAN_NUMBERS)
def test_every_number_of_a_plan_has_its_axis(what: str) -> None:
    """Whatever is logged of a layer is named, since overlapping patterns are left to chance."""
    tracker = Tracker()
    set_axes(tracker, OBJECTIVES["classification"], layers=1)
    assert [name for name in tracker.metrics if "*" in name] == ["*"]
    assert f"plan/0/{what}" in tracker.metrics


@pytest.mark.slow
def test_summary_and_axes_reach_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_train(tmp_path, "logger=both")
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert kinds(file)["stats"], "wandb's own measurements of the system are on"
    assert media(file) == {"curves", "plan/example"}
    known = [name for name in SUMMARY if getattr(run.manifest, name) is not None]
    assert {"parameters", "kept_epoch", "best_val_accuracy"} <= set(known)
    for name in (*known, "trainer/global_step", "train/loss_step"):
        assert name.encode() in written, name
    assert b"lr-AdamW" not in written
