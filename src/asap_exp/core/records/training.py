"""Types of the record of a training: what its manifest says, and its curves."""

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from asap_exp.core.manifest import TrainManifest
from asap_exp.core.objectives import CLASSIFICATION, OBJECTIVES, Objective
from asap_exp.core.records.evaluation import Curve
from asap_exp.core.records.settings import TrainingData
from asap_exp.core.typed import STRICT, RunName, checked


@dataclass(config=STRICT, kw_only=True)
class TrainingRecord:
    """Record of a finished training, made from its run directory when a report is made."""

    format: Literal[1]
    run: RunName
    curves: Curve
    manifest: TrainManifest
    sha256: str | None = None

    @property
    def task(self) -> str:
        """Task of the run, with which its name begins."""
        return self.run.partition("/")[0]

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the training."""
        return self.manifest.config

    @property
    def trained_on(self) -> TrainingData:
        return checked(TrainingData, self.manifest.data, "manifest.data")

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.config["data"].get("objective", CLASSIFICATION.name)]

    @property
    def quality(self) -> float | None:
        """The best validation accuracy or perplexity; None of a training without validation."""
        found: float | None = getattr(self.manifest, f"best_val_{self.objective.metric}")
        return found

    @property
    def last_loss(self) -> float | None:
        """Training loss of the last epoch."""
        return self.curves[-1].get("train/loss_epoch") if self.curves else None

    @property
    def recipe(self) -> str:
        """The run's name without its seed."""
        return self.run.removesuffix(f"-s{self.manifest.seed}")
