"""Stage 3: measure a compiled model. `python -m asap_exp.evaluate`"""

from asap_exp.core import app
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.score import Score


def run(config: EvaluateConfig) -> Score | None:
    """Run the stage and return the map's score; slow imports wait for a checked configuration.

    It is None from the check of another rank than 0.
    """
    if config.check:
        from asap_exp.core.team import by_first
        from asap_exp.evaluate.check import check

        return by_first(config.together, lambda: check(config))

    from asap_exp.core.team import refuse_sweep_in_each_process
    from asap_exp.evaluate.evaluate import evaluate, score

    refuse_sweep_in_each_process(config.together)
    return score(evaluate(config))


if __name__ == "__main__":
    app.main("evaluate", EvaluateConfig, run)
