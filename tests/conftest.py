"""What every test shares: no network, one thread, and one tiny trained and compiled teacher."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, just below

from asap_exp.core.files import write_json
from asap_exp.core.manifest import code_version, hardware, now, versions
from asap_exp.core.runs import Run
from tests.stages import run_distill, run_evaluate, run_train

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", type=Path, help="write every outcome and measured error to a file")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--report"):
        config.pluginmanager.register(Report(path))


class Report:
    """A record of the tests: where they ran, and what each of them found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: list[dict] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            found = dict(report.user_properties)
            self.tests.append({"test": report.nodeid, "outcome": report.outcome, **found})

    def pytest_sessionfinish(self) -> None:
        outcomes = [test["outcome"] for test in self.tests]
        record = {
            "outcomes": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
            "written": now(),
            "code": code_version(),
            "versions": versions(),
            "hardware": hardware(),
            "tests": self.tests,
        }
        write_json(self.path, record)


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
