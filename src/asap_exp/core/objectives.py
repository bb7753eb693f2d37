"""Training objectives: what a model predicts and which metrics judge it."""

import math
from dataclasses import dataclass

from asap_exp.core.score import Score


@dataclass(frozen=True)
class Objective:
    """Kind of prediction; the loss is always the mean cross-entropy of its targets.

    `name` is the value of `data.objective` and appears in records. `model` names such a model in a
    sentence. `metric` is the column of records that judges a model. `validation` is the logged
    quantity that chooses the best epoch; the metric is its exponential if `is_perplexity`, and the
    quantity itself otherwise. If `of_tokens`, the targets are tokens of a text, not one class per
    sample. `title` is what the titles of tables add to the name of the data set.
    """

    name: str
    model: str
    metric: str
    validation: str
    is_perplexity: bool = False
    of_tokens: bool = False
    title: str = ""

    @property
    def lower_is_better(self) -> bool:
        return self.is_perplexity

    def best(self, validation: float) -> dict[str, float]:
        """Return the manifest's entry for the best epoch, given its validation quantity."""
        value = math.exp(validation) if self.is_perplexity else validation
        return {f"best_val_{self.metric}": value}

    def summary(self, manifest: dict) -> str | None:
        """Return the best epoch's entry of a manifest in words; None if it has none."""
        best = manifest.get(f"best_val_{self.metric}")
        return None if best is None else f"best validation {self.metric} {self.shown(best)}"

    def shown(self, metric: float) -> str:
        """Format a value of the metric."""
        return f"{metric:.2f}" if self.is_perplexity else f"{100 * metric:.2f} %"

    def score(self, split: str, metric: float | None) -> Score:
        """Return the metric on a split as the score of a job."""
        return Score(
            name=f"{split} {self.metric}",
            value=metric,
            text="" if metric is None else self.shown(metric),
            lower_is_better=self.lower_is_better,
        )


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("classification", "a classifier", "accuracy", "val/accuracy"),
        Objective(
            "mlm",
            "a masked language model",
            "perplexity",
            "val/loss",
            is_perplexity=True,
            of_tokens=True,
            title="masked tokens",
        ),
    )
}
"""Objectives by name. Each also needs its targets: `asap_exp.data.targets`."""

CLASSIFICATION = OBJECTIVES["classification"]
