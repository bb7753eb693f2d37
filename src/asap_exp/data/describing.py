"""Description of the data set that a configuration names: catalogued, or the user's own."""

from asap_exp.core.config import (
    ImageDataConfig,
    OwnImageDataConfig,
    OwnTextDataConfig,
    TextDataConfig,
)
from asap_exp.core.objectives import OBJECTIVES
from asap_exp.data.catalog import ImageDataset, TextDataset, image_dataset, text_dataset


def described_images(config: ImageDataConfig) -> ImageDataset:
    """Return the description of an image data set; raise UserError if its name is unknown."""
    if not isinstance(config, OwnImageDataConfig):
        return image_dataset(config.name)
    assert config.num_classes is not None, "own images have classes"
    return ImageDataset(
        name=config.name,
        rows={},
        num_classes=config.num_classes,
        size=config.image_size,
        channels=config.channels,
        mean=tuple(config.mean),
        std=tuple(config.std),
        image_column=config.image_column,
    )


def described_texts(config: TextDataConfig) -> TextDataset:
    """Return the description of a text data set; raise UserError if its name is unknown."""
    if not isinstance(config, OwnTextDataConfig):
        return text_dataset(config.name)
    masked = OBJECTIVES[config.objective].of_tokens
    return TextDataset(
        name=config.name,
        rows={},
        num_classes=0 if masked else config.num_classes or 0,
        text_column=config.text_column,
    )
