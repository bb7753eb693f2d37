"""Data module of own images."""

from pathlib import Path
from typing import Any

import torch

from asap_exp.core.config import OwnImageDataConfig
from asap_exp.core.locations import cache_dir
from asap_exp.data.images import ImageDataModule
from asap_exp.data.own.module import OwnDataModule
from asap_exp.data.own.splits import ImageSplits
from asap_exp.data.pixels import kept_pixels
from asap_exp.data.sources import Images


class OwnImageDataModule(OwnDataModule, ImageDataModule):
    """Own images, fitted to the size of the configuration."""

    config: OwnImageDataConfig

    def __init__(
        self, config: OwnImageDataConfig, *, folder: Path | None = None, **options: Any
    ) -> None:
        super().__init__(config, folder=folder, **options)
        self.own = ImageSplits(config, self.dataset.trained_names)
        self.trained = folder is not None

    def load(self, split: str) -> Images:
        rows = self.own_rows(split)
        column = self.config.image_column
        pixels = kept_pixels(
            self.own.reader.read(rows.where, [column], rows.numbers),
            len(rows.numbers),
            self.dataset,
            cache_dir(self.config.cache),
            self.own.reader.content(rows.where, rows.numbers),
            self.config.image_size,
        )
        labels = torch.from_numpy(self.own.labels(rows.where)[rows.numbers])
        return self.placed(Images(pixels, labels, self.own.reader.source))
