"""Data settings that exceed the machine's memory are refused before anything is loaded."""

import pytest
from omegaconf import OmegaConf

from asap_exp.core.composing import compose, parse
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError

IMAGES = {
    "data.split_seed=4294967296": "at most 4294967295",
    f"data.split_seed={2**70}": "at most 4294967295",
    "data.image_size=100000": "at most 4096",
    "data.augment.crop_padding=100000000": "; give data.augment.crop_padding=4",
    "data.augment.randaugment.num_ops=1000000000": "at most 100",
    f"data.augment.randaugment.groups={2**64}": "at most 65536",
}
TEXTS = {
    "data.max_length=1000000000": "at most 65536",
    "data.vocab_size=1000000000": "at most 1048576",
    f"data.batch_tokens={2**64}": "at most 2147483647",
    f"data.length_multiple={2**63}": "at most 65536",
    "data.mask_seed=4294967296": "at most 4294967295",
}
LARGEST = {
    "cifar": "data.split_seed=4294967295 data.image_size=4096 data.augment.crop_padding=4096 "
    "data.augment.randaugment.num_ops=100 data.augment.randaugment.groups=65536",
    "imdb": "data.max_length=65536 data.vocab_size=1048576 data.batch_tokens=2147483647 "
    "data.length_multiple=65536 data.mask_seed=4294967295",
}


@pytest.mark.parametrize(
    ("task", "override", "allowed"),
    [
        *(("cifar", *case) for case in IMAGES.items()),
        *(("imdb", *case) for case in TEXTS.items()),
    ],
)
def test_value_that_is_too_large_is_refused(task, override, allowed):
    if task == "imdb" and override.startswith("data.max_length"):
        override = f"{override} data.batch_tokens=1000000000"
    with pytest.raises(UserError) as error:
        compose("train", [f"task={task}", *override.split()], TrainConfig)
    first = override.split()[0]
    assert first == f"{error.value.key}={error.value.value}"
    assert str(error.value).endswith(allowed)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "overrides"), LARGEST.items())
def test_largest_values_are_allowed(task, overrides):
    config = compose("train", [f"task={task}", *overrides.split()], TrainConfig)
    for override in overrides.split():
        key, value = override.split("=")
        assert OmegaConf.select(OmegaConf.structured(config), key) == int(value)
        parse(OmegaConf.structured(config), TrainConfig)
