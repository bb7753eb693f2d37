"""Stage 1: train a model. `python -m asap_exp.train task=digits`"""

from asap_exp import stages
from asap_exp.config import TrainConfig
from asap_exp.training.fit import train

if __name__ == "__main__":
    stages.main("train", TrainConfig, train)
