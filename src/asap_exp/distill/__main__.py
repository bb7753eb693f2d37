"""Stage 2: compile a teacher's layers. `python -m asap_exp.distill +layer=frozen`"""

from asap_exp.core import app
from asap_exp.distill.config import DistillConfig


def run(config: DistillConfig) -> None:
    """Run the stage; slow imports wait until the configuration has been checked."""
    if config.budget.asked:
        from asap_exp.distill.budget import distill_within_budget

        distill_within_budget(config)
    else:
        from asap_exp.distill.distill import distill

        distill(config)


if __name__ == "__main__":
    app.main("distill", DistillConfig, run)
