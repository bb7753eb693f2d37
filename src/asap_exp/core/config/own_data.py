"""Own data: what the user asks for, and the complete configuration once the data has been read.

A request leaves null what is to be found in the data. `asap_exp.data.own.find` turns it into the
configuration that a run saves, where nothing is null that its model depends on.
"""

from dataclasses import dataclass
from typing import Annotated

from asap_exp.core.config.data import (
    DataConfig,
    ImageDataConfig,
    LengthlessTextConfig,
    PlacedDataConfig,
    SizelessAugmentConfig,
    TextDataConfig,
)
from asap_exp.core.config.fields import PATH, above, at_least, at_most, between, one_of, within
from asap_exp.core.config.model import EncoderConfig, ModelConfig
from asap_exp.core.config.train import (
    ImageTrainConfig,
    TextRecipeConfig,
    TextTrainConfig,
    TrainConfig,
)
from asap_exp.core.errors import UserError, check_name
from asap_exp.core.objectives import OBJECTIVES, Objective

AUTO = "auto"
"""Value of `data.name` for the name of the folder or file."""
MOST_CLASSES = 100_000

Channels = Annotated[int, one_of(1, 3)]
Means = Annotated[list[float], within(0, 1)]
Deviations = Annotated[list[float], above(0), at_most(1)]


@dataclass(kw_only=True)
class OwnDataConfig(DataConfig):
    """Location of own data, the share held out as test split if it has none, and its classes."""

    path: Annotated[str, PATH]
    configuration: str | None
    test_fraction: Annotated[float | None, between(0, 1)]
    label_column: str | None
    num_classes: Annotated[int | None, at_least(2), at_most(MOST_CLASSES)]

    def __post_init__(self) -> None:
        if self.name != AUTO:
            check_name("data.name", self.name)


@dataclass
class OwnAugmentRequest(SizelessAugmentConfig):
    crop_padding: Annotated[int | None, at_least(0)]


@dataclass(kw_only=True)
class OwnImageRequest(OwnDataConfig, PlacedDataConfig):
    """Request for own images; null is found in them."""

    image_column: str | None
    image_size: Annotated[int | None, at_least(1), at_most(4096)]
    channels: Annotated[int | None, one_of(1, 3)]
    mean: Annotated[list[float] | None, within(0, 1)]
    std: Annotated[list[float] | None, above(0), at_most(1)]
    augment: OwnAugmentRequest


@dataclass(kw_only=True)
class OwnImageDataConfig(OwnDataConfig, ImageDataConfig):
    """Own images as they were found; `fingerprint` is that of their splits."""

    image_column: str
    channels: Channels
    mean: Means
    std: Deviations
    fingerprint: str

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        ImageDataConfig.__post_init__(self)
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(
                    f"data.{key}={values} must have a number for each of the {self.channels} "
                    "channels (data.channels)"
                )


@dataclass(kw_only=True)
class OwnTextRequest(OwnDataConfig, LengthlessTextConfig):
    """Request for own texts; null is found in them."""

    text_column: str | None
    drop_empty: bool
    max_length: Annotated[int | None, at_least(2), at_most(2**16)]
    vocab_size: Annotated[int | None, at_least(320), at_most(2**20)]

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        LengthlessTextConfig.__post_init__(self)
        check_standard_split(self.split)


@dataclass(kw_only=True)
class OwnTextDataConfig(OwnDataConfig, TextDataConfig):
    """Own texts as they were found; `fingerprint` is that of their splits."""

    text_column: str
    drop_empty: bool
    fingerprint: str

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        TextDataConfig.__post_init__(self)
        check_standard_split(self.split)


def check_standard_split(split: str) -> None:
    """Raise UserError if own texts are to be pooled."""
    if split == "pooled":
        raise UserError(
            "data.split=pooled deals training and test rows again, as one published run did; for "
            "your own data set data.split=standard, and data.test_fraction for a test split"
        )


@dataclass
class ViTRequest(ModelConfig):
    patch_size: Annotated[int | None, at_least(1)]


@dataclass
class OwnImageTrainRequest(TrainConfig):
    data: OwnImageRequest
    model: ViTRequest


@dataclass
class OwnTextTrainRequest(TrainConfig):
    data: OwnTextRequest
    model: EncoderConfig
    recipe: TextRecipeConfig

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.data.objective]


@dataclass
class OwnImageTrainConfig(ImageTrainConfig):
    data: OwnImageDataConfig


@dataclass
class OwnTextTrainConfig(TextTrainConfig):
    data: OwnTextDataConfig


REQUEST_SCHEMAS: dict[str, type[TrainConfig]] = {
    "vit": OwnImageTrainRequest,
    "encoder": OwnTextTrainRequest,
}
"""Schemas of a command line on own data, by `model.name`."""

OWN_SCHEMAS: dict[str, type[TrainConfig]] = {
    "vit": OwnImageTrainConfig,
    "encoder": OwnTextTrainConfig,
}
"""Schemas of a saved run on own data, by `model.name`."""
