"""Run directories made by hand: what the code that looks for runs reads, without any training."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asap_exp.composing import compose
from asap_exp.config import TrainConfig
from asap_exp.files import write_json
from asap_exp.runs import Run, claim
from asap_exp.tensors import fingerprint, save_tensors


@cache
def _composed(overrides: tuple[str, ...]) -> TrainConfig:
    return compose("train", overrides, TrainConfig)


def train_config(*overrides: str, task: str = "digits") -> TrainConfig:
    return deepcopy(_composed((f"task={task}", *overrides)))


def fake_run(
    results: Path,
    *overrides: str,
    task: str = "digits",
    ended: str = "2026-01-01T00:00:00+00:00",
    weights: dict[str, Tensor] | None = None,
    **facts: Any,
) -> Run:
    """A finished run; `facts` replace those of its manifest."""
    config = train_config(*overrides, task=task)
    config.paths.results = str(results)
    run = claim(config, fresh=False)
    weights = {"x": torch.zeros(1)} if weights is None else weights
    save_tensors(run.weights, weights)
    manifest = {"status": "finished", "ended": ended, "teacher_sha256": fingerprint(weights)}
    write_json(run.path / "manifest.json", manifest | facts)
    return run
