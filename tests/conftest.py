"""What every test shares: no network, one thread, and one tiny trained and compiled teacher.

What takes seconds to import is imported where it is used: a test of an operator needs no stage, and
the process that hands the tests out needs none of it.
"""

import gc
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import quick_hydra, quick_omegaconf

if TYPE_CHECKING:
    from asap_exp.core.runs import Run

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
# Else torch.compile picks kernels by their time, so that two runs on a GPU differ in the last bits.
os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", type=Path, help="write every outcome and measured error to a file")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile(
        "the same cases every time",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=100,
    )
    hypothesis.settings.load_profile("the same cases every time")
    is_worker = hasattr(config, "workerinput")
    path = config.getoption("--report")
    if path and not is_worker:  # else what an interrupted run leaves is the report of one worker
        config.pluginmanager.register(Report(path))
    if is_worker or config.getoption("dist", "no") == "no":
        prepare_kernels()
        quick_hydra.hasten()
        quick_omegaconf.hasten()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what uses a trained teacher: whoever is first has to train it."""
    for item in items:
        if "shared_pipeline" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Search for garbage among what the tests make, not in a million objects of the libraries."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries report at the end what is left


def pytest_runtest_setup(item: pytest.Item) -> None:
    # wandb leaves the address of this process's service there, and commands that a test starts
    # would write their runs through it instead of waiting for one of their own.
    os.environ.pop("WANDB_SERVICE", None)
    # Else what a test draws depends on the tests that its process has run before.
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def prepare_kernels() -> None:
    """Choose Triton's interpreter where there is no GPU, before the kernels are imported."""
    import torch

    from tests import interpreter

    assert "asap_exp.ops" not in sys.modules, "a conftest.py must not import the operators"
    torch.set_num_threads(1)
    # The first backward pass decides whether forked processes may have one, by the kinds of devices
    # that are known: later, libraries have made some known that are not there.
    torch.ones(1, requires_grad=True).sum().backward()
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
        interpreter.hasten()
        torch.cuda._cached_device_count = 0  # optimisers ask at every step, which takes their time
    elif workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        # Else one test that takes much memory makes tests of the other processes fail.
        torch.cuda.set_per_process_memory_fraction(0.8 / workers)


WRITE_EVERY = 20.0
"""Seconds after which a report is written again, so that of a killed run most is known."""


class Report:
    """A record of the tests: where they ran, and what each of them found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: list[dict] = []
        self.written = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            found = dict(report.user_properties)
            if report.failed:
                found["reason"] = report.longreprtext[-2000:]
            self.tests.append({"test": report.nodeid, "outcome": report.outcome, **found})
            if time.monotonic() > self.written + WRITE_EVERY:
                self.write()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        # -x stops so, with the exit status of tests that failed
        self.write(is_whole=ended and not (session.shouldfail or session.shouldstop))

    def write(self, *, is_whole: bool = False) -> None:
        from asap_exp.core.files import write_json
        from asap_exp.core.manifest import code_version, hardware, now, versions

        outcomes = [test["outcome"] for test in self.tests]
        record = {
            "outcomes": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
            "written": now(),
            "code": code_version(),
            "versions": versions(),
            "hardware": hardware(),
            "is_whole": is_whole,
            "tests": self.tests,
        }
        write_json(self.path, record)
        self.written = time.monotonic()


@dataclass
class Pipeline:
    """A results folder with a teacher, its softmax twin, a compiled map and an evaluation."""

    results: Path
    teacher: "Run"
    softmax: "Run"
    artifact: Path
    record: Path


@pytest.fixture(scope="session")
def shared_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Made once; not to be changed. `pipeline` is a copy that may be."""
    from tests.stages import run_distill, run_evaluate, run_train

    results = tmp_path_factory.mktemp("pipeline") / "results"
    softmax = run_train(results, attention=("attention=softmax",))
    teacher = run_train(results)
    artifact = run_distill(results)
    return Pipeline(results, teacher, softmax, artifact, run_evaluate(results))


@pytest.fixture(scope="module")
def results(shared_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of the shared results, to which the tests of a module add maps and evaluations."""
    copy = tmp_path_factory.mktemp("copied") / "results"
    shutil.copytree(shared_pipeline.results, copy)
    return copy


@pytest.fixture
def pipeline(shared_pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    from asap_exp.core.runs import Run

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
