"""Stage 1: train a model. `python -m asap_exp.train task=digits`"""

from asap_exp import stages
from asap_exp.config import TrainConfig


def run(config: TrainConfig) -> None:
    """The work itself, imported only once the configuration has been found right."""
    from asap_exp.training.fit import train

    train(config)


if __name__ == "__main__":
    stages.main("train", TrainConfig, run)
