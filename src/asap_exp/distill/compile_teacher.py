"""Compile a frozen teacher as asked: with a fit, without one, or within a budget."""

from pathlib import Path

from asap_exp.distill.budget import distill_within_budget
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import distill
from asap_exp.distill.without_fit import distill_without_fit


def compile_teacher(config: DistillConfig) -> Path:
    """Return the folder of the artifact, after making it if it is not there."""
    if not config.calibration.fits:
        return distill_without_fit(config)
    return (distill_within_budget if config.budget.asked else distill)(config)
