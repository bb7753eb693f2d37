"""Run directories made by hand: what the code that looks for runs reads, without any training."""

from copy import deepcopy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asap_exp.core.composing import compose
from asap_exp.core.config import TrainConfig
from asap_exp.core.files import write_json
from asap_exp.core.manifest import LaterManifest
from asap_exp.core.runs import Run, claim, public_config, recipe_hash
from asap_exp.core.tensors import fingerprint, save_tensors


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
    run = claim(config)
    weights = {"x": torch.zeros(1)} if weights is None else weights
    save_tensors(run.weights, weights)
    write_json(run.path / "manifest.json", fake_manifest(config, weights, ended) | facts)
    return run


def fake_map(run: Run, name: str, **facts: Any) -> Path:
    """The folder of a map of `run`, of which the manifest alone is there."""
    whole = fake_manifest(run.config, {}, "2026-01-01T00:00:00+00:00")
    common = {field.name for field in fields(LaterManifest)}
    manifest = {key: value for key, value in whole.items() if key in common}
    folder = run.path / "distill" / name
    write_json(
        folder / "manifest.json", manifest | {"stage": "distill", "teacher": run.name} | facts
    )
    return folder


def fake_manifest(config: TrainConfig, weights: dict[str, Tensor], ended: str) -> dict[str, Any]:
    return {
        "status": "finished",
        "started": ended,
        "ended": ended,
        "wall_seconds": 1.0,
        "command": "python -m asap_exp.train",
        "code": {"commit": None, "dirty": None},
        "versions": {},
        "hardware": {"gpu": None, "cpu": "fake", "cpu_threads": 1, "system": "fake"},
        "stage": "train",
        "seed": config.seed,
        "config": public_config(config),
        "recipe_hash": recipe_hash(config),
        "data": {},
        "parameters": 1,
        "earlier_attempts": [],
        "kept_epoch": 0,
        "epochs": 1,
        "teacher_sha256": fingerprint(weights),
    }
