"""LightningDataModule of the image tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from asap_exp.core.config import ImageDataConfig
from asap_exp.core.console import say
from asap_exp.core.devices import memory_left
from asap_exp.core.memory import gib
from asap_exp.data.augment import EvaluationTransform, TrainingTransform
from asap_exp.data.catalog import ImageDataset
from asap_exp.data.describing import described_images
from asap_exp.data.loader import BatchLoader, DeviceLoader
from asap_exp.data.memory_check import check_fits
from asap_exp.data.module import TaskDataModule
from asap_exp.data.run_files import as_trained, check_same_training
from asap_exp.data.sources import Images, check_labels, load_images
from asap_exp.data.undivided import divides, rows_in_all

LARGEST_SHARE = 0.5
"""Share of the memory that a GPU has left, up to which images are placed there by themselves."""

RESIZED_AT_ONCE = 1000
"""Images resized per step; bounds the memory of the intermediate results."""


class ImageDataModule(TaskDataModule[Images]):
    """Images held as uint8 on the device and augmented there."""

    sample_name = "images"
    config: ImageDataConfig
    dataset: ImageDataset

    def __init__(
        self, config: ImageDataConfig, *, folder: Path | None = None, **options: Any
    ) -> None:
        self.dataset = as_trained(described_images(config), folder)
        super().__init__(config, self.dataset, **options)
        self._trained = folder
        self._undivided: int | None = None

    @property
    def num_classes(self) -> int:
        return self.dataset.num_classes

    @property
    def rows_in_all(self) -> Mapping[str, int]:
        if self._undivided is None:
            return super().rows_in_all
        return rows_in_all(self.dataset, self._undivided)

    def load(self, split: str) -> Images:
        size = self.config.image_size
        images = load_images(
            self.dataset,
            split,
            self.config.root,
            self.config.cache,
            self.limit,
            size if self.dataset.several_sizes else None,
        )
        self._undivided = images.undivided
        if split == "train":
            self.class_names = images.names
        pixels = images.pixels
        if tuple(pixels.shape[2:]) != (size, size):
            pixels = resized(pixels, size)
        return self.placed(Images(pixels, images.labels, images.source))

    def test_dataloader(self, max_rows: int | None = None) -> BatchLoader:
        """Return a loader of the test split, or of its first `max_rows` samples.

        Raises UserError if sources divide the data in different ways and the training rows are not
        those that the model was trained on: it may have seen the test rows.
        """
        if divides(self.dataset) and self._trained is not None:
            check_same_training(self._trained, self.content_hashes()["train_sha256"])
        return super().test_dataloader(max_rows)

    def placed(self, images: Images) -> Images:
        """Return the images where training finds them: on the device or in main memory."""
        if stays_on_host(images.pixels, self.config.placement, self.device):
            return images.uncopied()
        pixels, labels = images.pixels.to(self.device), images.labels.to(self.device)
        return images._replace(pixels=pixels, labels=labels)

    def check(self, split: str) -> None:
        check_labels(self.dataset, split, self.config.root, self.config.cache)

    def training_loader(self, samples: Images) -> DeviceLoader:
        return DeviceLoader(
            samples,
            self.batch_size,
            TrainingTransform(self.dataset, self.config.augment).to(self.device),
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            ranks=self.ranks,
            device=self.device,
        )

    def plain_loader(self, samples: Images, batch_size: int) -> DeviceLoader:
        transform = EvaluationTransform(self.dataset).to(self.device)
        return DeviceLoader(samples, batch_size, transform, ranks=self.ranks, device=self.device)


def stays_on_host(pixels: Tensor, placement: str, device: torch.device) -> bool:
    """Return whether images stay in main memory; says so if that is decided here."""
    if placement != "auto":
        return placement == "host"
    if device.type == "cpu":
        return False
    left = memory_left(device)
    if pixels.nbytes <= LARGEST_SHARE * left:
        return False
    say(
        f"Images stay in main memory: they take {gib(pixels.nbytes)}, and the GPU has {gib(left)} "
        "left"
    )
    return True


def resized(pixels: Tensor, size: int) -> Tensor:
    """Resize uint8 `pixels` `[rows, channels, h, w]` to `size`, in parts to bound memory.

    Raises UserError if the result does not fit in the machine's memory.
    """
    shape = (*pixels.shape[:2], size, size)
    check_fits(f"data.image_size={size}", shape)
    result = torch.empty(shape, dtype=pixels.dtype)
    for part, place in zip(
        pixels.split(RESIZED_AT_ONCE), result.split(RESIZED_AT_ONCE), strict=True
    ):
        place.copy_(v2.functional.resize(part, [size, size], antialias=True))
    return result
