"""What every test shares: no network, one thread, and one tiny trained and compiled teacher."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from asap_exp.runs import Run
from tests.stages import run_distill, run_evaluate, run_train

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Pipeline:
    """A results folder with a teacher, its softmax twin, a compiled map and an evaluation."""

    results: Path
    teacher: Run
    softmax: Run
    artifact: Path
    record: Path


@pytest.fixture(scope="session")
def shared_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Made once; not to be changed. `pipeline` is a copy that may be."""
    results = tmp_path_factory.mktemp("pipeline") / "results"
    softmax = run_train(results, attention=("attention=softmax",))
    teacher = run_train(results)
    artifact = run_distill(results)
    return Pipeline(results, teacher, softmax, artifact, run_evaluate(results))


@pytest.fixture
def pipeline(shared_pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    results = tmp_path / "results"
    shutil.copytree(shared_pipeline.results, results)

    def moved(path: Path) -> Path:
        return results / path.relative_to(shared_pipeline.results)

    return Pipeline(
        results,
        Run(moved(shared_pipeline.teacher.path)),
        Run(moved(shared_pipeline.softmax.path)),
        moved(shared_pipeline.artifact),
        moved(shared_pipeline.record),
    )
