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
    from asap_exp.distill.compile_teacher import compile_teacher
    from asap_exp.distill.fidelity_table import score

    refuse_sweep_in_each_process(config.together)
    return score(compile_teacher(config))


if __name__ == "__main__":
    app.main("distill", DistillConfig, run)
