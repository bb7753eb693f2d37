"""Stages on a model that trains in a second: two layers, T = 4, few batches.

A stage is imported when it is run: most tests of this module's users need its arguments alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from asap_exp.core.config import (
    BenchmarkConfig,
    EvaluateConfig,
    ReportConfig,
    TrainConfig,
)
from asap_exp.distill.config import DistillConfig
from tests.composed import composed

if TYPE_CHECKING:
    from asap_exp.core.runs import Run

TINY = (
    "task=digits",
    "logger=csv",
    "callbacks.progress_bar=false",
    "model.dim=16",
    "model.heads=2",
    "model.depth=2",
    "model.patch_size=4",
    "recipe.epochs=3",
    "recipe.warmup_epochs=1",
    "trainer.limit_train_batches=4",
    "callbacks.diagnostic_samples=8",
    "callbacks.checkpoint_seconds=0",
)
TINY_TEXT = (
    "logger=csv",
    "callbacks.progress_bar=false",
    "model.dim=16",
    "model.heads=2",
    "model.depth=2",
    "data.vocab_size=400",
    "data.max_length=48",
    "data.length_multiple=16",
    "data.batch_tokens=768",
    "recipe.batch_size=16",
    "recipe.epochs=2",
    "recipe.warmup_epochs=0",
    "recipe.lr=3e-3",
    "callbacks.diagnostic_samples=8",
    "callbacks.checkpoint_seconds=0",
    "trainer.cpu_threads=1",
)
SINKHORN = ("attention=sinkhorn", "attention.num_iters=4")
CALIBRATION = (
    "logger=csv",
    "calibration.samples=32",
    "calibration.holdout=16",
    "calibration.slices=3",
    "calibration.batch_size=16",
)
EVALUATION = (
    "logger=csv",
    "max_test_rows=48",
    "fidelity_samples=16",
    "latency.batch_size=4",
    "latency.rounds=3",
    "truncations=[1,2,10]",
    "relaxed_truncations=[2,10]",
)
BENCHMARK = (
    "accelerator=cpu",
    "cpu.n=[4,8]",
    "cpu.tokens=32",
    "cpu.heads=2",
    "cpu.head_dim=8",
    "cpu.rounds=3",
    "cpu.methods=[flash,sinkhorn_2,closure,asap_2,asap_2_refine_1]",
)


def train_config(
    results: Path,
    *overrides: str,
    attention: tuple[str, ...] = SINKHORN,
    tiny: tuple[str, ...] = TINY,
) -> TrainConfig:
    return composed(
        "train", [*tiny, *attention, f"paths.results={results}", *overrides], TrainConfig
    )


def run_train(results: Path, *overrides: str, attention: tuple[str, ...] = SINKHORN) -> "Run":
    from asap_exp.train.trainer import train

    return train(train_config(results, *overrides, attention=attention))


def run_text(
    results: Path, root: Path, *overrides: str, attention: tuple[str, ...] = SINKHORN
) -> "Run":
    """A run on the data sets below `root`; `overrides` name the task."""
    from asap_exp.train.trainer import train

    where = (f"data.root={root}", f"data.cache={root / 'cache'}")
    return train(train_config(results, *where, *overrides, attention=attention, tiny=TINY_TEXT))


def run_distill(results: Path, *overrides: str) -> Path:
    from asap_exp.distill.distill import distill

    return distill(
        composed("distill", [*CALIBRATION, f"paths.results={results}", *overrides], DistillConfig)
    )


def run_coarse(results: Path, *overrides: str) -> Path:
    """Coarse duals of two tokens, without a fit."""
    from asap_exp.distill.without_fit import distill_without_fit

    given = ["calibration=coarse", "calibration.coarse.tokens=2", "logger=csv", *overrides]
    where = f"paths.results={results}"
    return distill_without_fit(composed("distill", [*given, where], DistillConfig))


def run_imitation(results: Path, *overrides: str) -> Path:
    """Hedgehog in the place of a softmax teacher's attention."""
    from asap_exp.distill.distill import distill

    few = ("samples=32", "holdout=16", "batch_size=16", "hedgehog.updates=60")
    given = ["calibration=hedgehog", *(f"calibration.{key}" for key in few), "logger=csv"]
    where = f"paths.results={results}"
    return distill(composed("distill", [*given, where, *overrides], DistillConfig))


def run_evaluate(results: Path, *overrides: str) -> Path:
    from asap_exp.evaluate.evaluate import evaluate

    return evaluate(
        composed("evaluate", [*EVALUATION, f"paths.results={results}", *overrides], EvaluateConfig)
    )


def run_benchmark(results: Path, *overrides: str) -> Path:
    from asap_exp.benchmark.benchmark import benchmark

    return benchmark(
        composed("benchmark", [*BENCHMARK, f"paths.results={results}", *overrides], BenchmarkConfig)
    )


def run_report(results: Path, *overrides: str) -> Path | None:
    from asap_exp.report.report import report

    return report(composed("report", [f"paths.results={results}", *overrides], ReportConfig))
