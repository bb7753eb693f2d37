"""What a training leaves on wandb: axes, the best validation, and the facts of its summary."""

from pathlib import Path
from typing import Any

import pytest

from asap_exp.core.objectives import OBJECTIVES
from asap_exp.train.trainer import SUMMARY, set_axes
from tests.stages import run_train


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
def test_metrics_are_drawn_over_the_step_and_the_best_is_kept(
    objective: str, metric: str, best: str
) -> None:
    tracker = Tracker()
    set_axes(tracker, OBJECTIVES[objective])
    step = "trainer/global_step"
    assert tracker.metrics == {
        step: {},
        "*": {"step_metric": step},
        metric: {"step_metric": step, "summary": best},
    }


@pytest.mark.slow
def test_newcomer_w6_summary_and_axes_reach_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_train(tmp_path, "logger=both")
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    known = [name for name in SUMMARY if getattr(run.manifest, name) is not None]
    assert {"parameters", "kept_epoch", "best_val_accuracy"} <= set(known)
    for name in (*known, "trainer/global_step", "train/loss_step"):
        assert name.encode() in written, name
    assert b"lr-AdamW" not in written
