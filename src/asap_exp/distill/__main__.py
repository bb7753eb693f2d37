"""Stage 2: compile a teacher's layers. `python -m asap_exp.distill layer=frozen`"""

from asap_exp.core import app
from asap_exp.core.score import Score
from asap_exp.distill.config import DistillConfig


def run(config: DistillConfig) -> Score | None:
    """Run the stage and return the score of the map; slow imports wait for a checked config.

    It is None from the check of another rank than 0.
    """
    if config.check:
        from asap_exp.core.team import by_first
        from asap_exp.distill.check import check

        return by_first(config.together, lambda: check(config))

    from asap_exp.core.team import refuse_sweep_in_each_process
    from asap_exp.distill.budget import distill_within_budget
    from asap_exp.distill.distill import distill
    from asap_exp.distill.fidelity_table import score
    from asap_exp.distill.without_fit import distill_without_fit

    refuse_sweep_in_each_process(config.together)
    if not config.calibration.fits:
        return score(distill_without_fit(config))
    return score((distill_within_budget if config.budget.asked else distill)(config))


if __name__ == "__main__":
    app.main("distill", DistillConfig, run)
