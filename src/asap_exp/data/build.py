"""Choice of the data module for a configuration, for images and texts."""

from pathlib import Path

import torch

from asap_exp.core.config import (
    DataConfig,
    ImageDataConfig,
    OwnImageDataConfig,
    OwnTextDataConfig,
    TextDataConfig,
)
from asap_exp.core.ranks import ALONE, Ranks
from asap_exp.data.images import ImageDataModule
from asap_exp.data.module import TaskDataModule
from asap_exp.data.own.images import OwnImageDataModule


def build_data(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    ranks: Ranks = ALONE,
) -> TaskDataModule:
    """Build the data module of `config`.

    `folder` is the run directory of the model that will read the data, if it is already trained.
    `batch_size` is that of all `ranks` together.
    """
    options = {"batch_size": batch_size, "seed": seed, "device": device, "ranks": ranks}
    if isinstance(config, TextDataConfig):
        # Imported here because image tasks also run where `tokenizers` is not installed.
        if isinstance(config, OwnTextDataConfig):
            from asap_exp.data.own.texts import OwnTextDataModule

            return OwnTextDataModule(config, folder=folder, **options)
        from asap_exp.data.text import TextDataModule

        return TextDataModule(config, folder=folder, **options)
    if isinstance(config, OwnImageDataConfig):
        return OwnImageDataModule(config, folder=folder, **options)
    assert isinstance(config, ImageDataConfig)
    return ImageDataModule(config, folder=folder, **options)
