"""Stage 2: compile a teacher's layers. `python -m asap_exp.distill +layer=frozen`"""

from asap_exp import stages
from asap_exp.config import DistillConfig


def run(config: DistillConfig) -> None:
    """The work itself, imported only once the configuration has been found right."""
    if config.budget.asked:
        from asap_exp.budgeting.compile import distill_within_budget

        distill_within_budget(config)
    else:
        from asap_exp.distillation.compile import distill

        distill(config)


if __name__ == "__main__":
    stages.main("distill", DistillConfig, run)
