"""Parts of an evaluation that are kept as soon as they are measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from asap_exp.core.config import EvaluateConfig
from asap_exp.core.kept_parts import Parts
from asap_exp.evaluate.measure import Part
from asap_exp.evaluate.resolve import Subject


def parts_of(
    subject: Subject, config: EvaluateConfig, folder: Path, started: dict[str, Any]
) -> Parts:
    """Return what an attempt that was stopped has left in `folder`, the folder of the record.

    `started` is the manifest of this attempt, whose earlier ones become those that are continued.
    """
    trained = {run.name: run.manifest.teacher_sha256 for run in subject.runs}
    settings = {"variants": [row.key for row in subject.variants], "trained": trained}
    names = ["predictions", "plans", "speed"]
    names += ["validation"] if subject.run.config.objective.is_perplexity else []
    names += ["behaviour"] if config.behaviour else []
    return Parts(folder, started, dict.fromkeys(names, settings), "Parts of the evaluation: {}")


def kept_or_added(parts: Parts, name: str, measure: Callable[[], Part]) -> Part:
    """Return the part that is kept, or measure and keep it."""
    if name in parts.missing:
        parts.add(name, measure())
    return parts.contents[name]


def kept(contents: dict[str, Part], name: str, measure: Callable[[], Part]) -> Part:
    """Return the part that rank 0 has kept, or measure this rank's share of it."""
    return contents[name] if name in contents else measure()
