"""Stage 1: train a model. `python -m asap_exp.train task=digits`"""

from asap_exp.core import app
from asap_exp.core.config import (
    OwnImageTrainRequest,
    OwnTextTrainRequest,
    TrainConfig,
)
from asap_exp.core.score import Score


def run(config: TrainConfig) -> Score | None:
    """Train and return the validation score; slow imports wait for a checked configuration.

    It is None from the check of another rank than 0.
    """
    from asap_exp.core.config import TextDataConfig
    from asap_exp.data.catalog import image_dataset, text_dataset

    # Before PyTorch is loaded, which takes seconds.
    if isinstance(config, OwnImageTrainRequest | OwnTextTrainRequest):
        config = complete(config)
    else:
        known = text_dataset if isinstance(config.data, TextDataConfig) else image_dataset
        known(config.data.name)

    if config.check:
        from asap_exp.core.team import by_first
        from asap_exp.train.check import check

        return by_first(config.trainer.together, lambda: check(config))

    from asap_exp.core.team import refuse_sweep_in_each_process
    from asap_exp.train.trainer import train

    refuse_sweep_in_each_process(config.trainer.together)
    trained = train(config).manifest
    metric = getattr(trained, f"best_val_{config.objective.metric}")
    return config.objective.score("validation", metric)


def complete(request: OwnImageTrainRequest | OwnTextTrainRequest) -> TrainConfig:
    """Return the configuration of a request for own data, whose place is looked at first."""
    from asap_exp.data.own.places import locate

    of_images = isinstance(request, OwnImageTrainRequest)
    locate(request.data.path, request.data.root, "images" if of_images else "texts")

    from asap_exp.data.own.find import found

    return found(request)


if __name__ == "__main__":
    app.main("train", TrainConfig, run)
