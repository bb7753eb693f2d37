"""Training data: images or texts."""

from dataclasses import dataclass, field
from typing import Annotated

from asap_exp.core.config.fields import (
    Probability,
    Seed,
    at_least,
    at_most,
    between,
    one_of,
    within,
)
from asap_exp.core.config.shared import DataLocation
from asap_exp.core.errors import UserError, check_range
from asap_exp.core.objectives import OBJECTIVES


@dataclass
class RandAugmentConfig:
    num_ops: Annotated[int, at_least(0), at_most(100)]
    magnitude: Annotated[int, within(0, 30)]
    groups: Annotated[int, at_least(1), at_most(2**16)]


@dataclass
class SizelessAugmentConfig:
    """Augmentation whose settings hold for images of any size."""

    flip: bool
    mixup: Annotated[float, at_least(0)]
    cutmix: Annotated[float, at_least(0)]
    randaugment: RandAugmentConfig


@dataclass
class AugmentConfig(SizelessAugmentConfig):
    crop_padding: Annotated[int, at_least(0)]


@dataclass
class DataConfig(DataLocation):
    """Data set and its split; `val_fraction` null uses the data set's own validation split."""

    name: str
    val_fraction: Annotated[float | None, between(0, 1)]
    split_seed: Seed
    train_on: Annotated[str, one_of("train", "train+val")]
    # Configurations saved before this key existed lack it.
    limit: Annotated[int | None, at_least(2)] = field(default=None, kw_only=True)


@dataclass
class PlacedDataConfig(DataConfig):
    """Settings of images that hold for any size."""

    # Configurations saved before this key existed lack it.
    placement: Annotated[str, one_of("auto", "device", "host")] = field(
        default="auto", kw_only=True
    )


@dataclass
class ImageDataConfig(PlacedDataConfig):
    image_size: Annotated[int, at_least(1), at_most(4096)]
    augment: AugmentConfig

    def __post_init__(self) -> None:
        check_range(
            "data.augment.crop_padding",
            self.augment.crop_padding,
            maximum=self.image_size,
            bound_by="data.image_size",
            fitting=self.image_size // 8,
        )


@dataclass
class LengthlessTextConfig(DataConfig):
    """Settings of texts that hold for any length of text and size of vocabulary."""

    objective: Annotated[str, one_of(*OBJECTIVES)]
    split: Annotated[str, one_of("standard", "pooled")]
    layout: Annotated[str, one_of("texts", "blocks")]
    truncation: Annotated[str, one_of("head", "ends")]
    lowercase: bool
    batch_tokens: Annotated[int, at_most(2**31 - 1)]
    length_multiple: Annotated[int, at_least(1), at_most(2**16)]
    mask_share: Probability
    mask_seed: Seed

    def __post_init__(self) -> None:
        if self.objective in OBJECTIVES and OBJECTIVES[self.objective].of_tokens:
            check_range("data.mask_share", self.mask_share, above=0, below=1)
        elif self.layout == "blocks":
            raise UserError(
                "data.layout=blocks joins texts, so that they have no class of their own; "
                "it needs data.objective=mlm"
            )


@dataclass
class TextDataConfig(LengthlessTextConfig):
    max_length: Annotated[int, at_least(2), at_most(2**16)]
    vocab_size: Annotated[int, at_least(320), at_most(2**20)]

    def __post_init__(self) -> None:
        check_range(
            "data.batch_tokens",
            self.batch_tokens,
            minimum=self.max_length,
            bound_by="data.max_length",
            fitting=self.max_length,
        )
        super().__post_init__()
