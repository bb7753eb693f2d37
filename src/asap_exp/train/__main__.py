"""Stage 1: train a model. `python -m asap_exp.train task=digits`"""

from asap_exp.core import app
from asap_exp.core.config import TrainConfig


def run(config: TrainConfig) -> None:
    """Train; the imports wait until the configuration has been validated."""
    from asap_exp.core.config import OwnImageTrainRequest, OwnTextTrainRequest, TextDataConfig
    from asap_exp.data.catalog import image_dataset, text_dataset

    # Before PyTorch is loaded, which takes seconds.
    if isinstance(config, OwnImageTrainRequest | OwnTextTrainRequest):
        from asap_exp.data.own.find import found

        config = found(config)
    else:
        known = text_dataset if isinstance(config.data, TextDataConfig) else image_dataset
        known(config.data.name)

    from asap_exp.train.trainer import train

    train(config)


if __name__ == "__main__":
    app.main("train", TrainConfig, run)
