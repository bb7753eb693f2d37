"""Words for how a map was made, for titles, rows and captions."""

from typing import Any

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.identity import CalibrationRecipe, Identity

PAPERS_MAP: dict[str, Any] = {
    "steps": ["ridge"],
    "slices": 32,
    "query_features": False,
    "adaptive": False,
    "logits": False,
    "refine": 0,
    "relaxed": False,
}
"""The paper's regression, by its size in this project; a title names every other map."""


def is_papers(made: CalibrationRecipe) -> bool:
    """Whether the map is the paper's; what a recipe does not name is as it is there."""
    named = {key: getattr(made, key) for key in PAPERS_MAP}
    return all(value in (None, PAPERS_MAP[key]) for key, value in named.items())


def map_words(record: EvaluationRecord) -> str:
    """How the record's map differs from the paper's, for a title; nothing where it does not."""
    if record.artifact.budget is not None:
        return "; ASAP within a budget"
    made = record.artifact.calibration
    if is_papers(made):
        return ""
    features = "".join(f" + {words}" for words in feature_words(made))
    refine = f", {refine_words(made.refine, made.relaxed)}" if made.refine else ""
    return f"; ASAP of {made.slices} slices{features}{refine}, {step_words(made)}"


def step_words(made: CalibrationRecipe) -> str:
    return " + ".join(step.replace("_", " ") for step in made.steps or PAPERS_MAP["steps"])


def feature_words(made: CalibrationRecipe | Identity) -> list[str]:
    """What a map regresses on beside potentials."""
    kinds = ["query"] if made.query_features else []
    kinds += ["adaptive"] if made.adaptive else []
    kinds += ["logit"] if made.logits else []
    listed = " and ".join(filter(None, [", ".join(kinds[:-1]), *kinds[-1:]]))
    return [f"{listed} features"] if kinds else []


def refine_words(refine: int, relaxed: bool | None) -> str:
    """How many updates a map makes of its dual, and whether they go further than plain ones."""
    return f"refine {refine}{' relaxed' if relaxed else ''}"


def corruption_words(record: EvaluationRecord) -> str:
    """What was done to the test images; nothing where nothing was."""
    change = record.corruption
    return "" if change is None else f", {change.name} of severity {change.severity}"


def attention_words(artifact: Identity) -> str:
    """What the compiled layers became; by layer where a budget chose."""
    if artifact.budget is not None:
        return "by layer " + "; ".join(x.became for x in artifact.budget.layers.values())
    features = " + ".join([f"{artifact.slices} slices", *feature_words(artifact)])
    made = artifact.calibration
    return f"{features}, {refine_words(made.refine, made.relaxed)}"
