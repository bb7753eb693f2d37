"""The data module of a configuration, whatever the kind of data."""

from pathlib import Path

import torch

from asap_exp.core.config import DataConfig, ImageDataConfig, TextDataConfig
from asap_exp.data.images import ImageDataModule
from asap_exp.data.module import TaskDataModule


def build_data(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
) -> TaskDataModule:
    """`folder`: the run directory whose model reads the data, where it is already trained."""
    options = {"batch_size": batch_size, "seed": seed, "device": device}
    if isinstance(config, TextDataConfig):
        # Images need no tokenizers, which is not on every machine that has torch.
        from asap_exp.data.text import TextDataModule

        return TextDataModule(config, folder=folder, **options)
    assert isinstance(config, ImageDataConfig)
    return ImageDataModule(config, folder=folder, **options)
