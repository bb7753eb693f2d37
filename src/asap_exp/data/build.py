"""The data module of a configuration, whatever the kind of data."""

import torch

from asap_exp.config import DataConfig, ImageDataConfig
from asap_exp.data.images import ImageDataModule
from asap_exp.data.module import TaskDataModule


def build_data(
    config: DataConfig, *, batch_size: int, seed: int, device: torch.device | str = "cpu"
) -> TaskDataModule:
    assert isinstance(config, ImageDataConfig)
    return ImageDataModule(config, batch_size=batch_size, seed=seed, device=device)
