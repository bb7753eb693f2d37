"""Stage 3: measure a compiled model. `python -m asap_exp.evaluate`"""

from asap_exp.core import app
from asap_exp.core.config import EvaluateConfig


def run(config: EvaluateConfig) -> None:
    """Run the stage; slow imports wait until the configuration has been checked."""
    from asap_exp.evaluate.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    app.main("evaluate", EvaluateConfig, run)
