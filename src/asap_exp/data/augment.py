"""Augmentation and normalisation of whole batches of uint8 images on their device."""

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from asap_exp.core.config import AugmentConfig, RandAugmentConfig
from asap_exp.data.catalog import ImageDataset


class BatchRandomCrop(nn.Module):
    """Random crop after zero padding by `padding` pixels, with a separate offset for each image.

    torchvision's RandomCrop draws one offset for the whole batch.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, pixels: Tensor) -> Tensor:
        batch, channels, height, width = pixels.shape
        padded = nn.functional.pad(pixels, (self.padding,) * 4)
        offsets = torch.randint(0, 2 * self.padding + 1, (2, batch), device=pixels.device)
        rows = offsets[0, :, None] + torch.arange(height, device=pixels.device)
        columns = offsets[1, :, None] + torch.arange(width, device=pixels.device)
        image = torch.arange(batch, device=pixels.device)[:, None, None, None]
        channel = torch.arange(channels, device=pixels.device)[None, :, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class BatchRandomHorizontalFlip(nn.Module):
    """Horizontal flip of each image of the batch with probability 0.5."""

    def forward(self, pixels: Tensor) -> Tensor:
        flip = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
        return torch.where(flip, pixels.flip(-1), pixels)


class GroupedRandAugment(nn.Module):
    """RandAugment (Cubuk et al., 2020), drawn separately for each of `groups` batch parts."""

    def __init__(self, config: RandAugmentConfig) -> None:
        super().__init__()
        self.groups = config.groups
        self.augment = v2.RandAugment(num_ops=config.num_ops, magnitude=config.magnitude)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.augment(part) for part in pixels.chunk(self.groups)])


class EvaluationTransform(nn.Module):
    """Conversion of uint8 pixels to normalised float32 images; labels stay as they are.

    The mean and standard deviation are kept on the device: torchvision's Normalize copies them
    there for every batch, and each copy makes the host wait until the GPU is idle.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dataset: ImageDataset) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(dataset.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(dataset.std)[:, None, None])

    def forward(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = v2.functional.to_dtype(pixels, torch.float32, scale=True)
        return images.sub_(self.mean).div_(self.std), labels


class TrainingTransform(nn.Module):
    """Augmentation and normalisation; with mixup or cutmix, labels become class probabilities."""

    def __init__(self, dataset: ImageDataset, config: AugmentConfig) -> None:
        super().__init__()
        geometric: list[nn.Module] = []
        if config.crop_padding:
            geometric.append(BatchRandomCrop(config.crop_padding))
        if config.flip:
            geometric.append(BatchRandomHorizontalFlip())
        if config.randaugment.num_ops:
            geometric.append(GroupedRandAugment(config.randaugment))
        self.geometric = nn.Sequential(*geometric)
        self.normalise = EvaluationTransform(dataset)
        mixing: list[nn.Module] = []
        if config.mixup:
            mixing.append(v2.MixUp(alpha=config.mixup, num_classes=dataset.num_classes))
        if config.cutmix:
            mixing.append(v2.CutMix(alpha=config.cutmix, num_classes=dataset.num_classes))
        self.mix = v2.RandomChoice(mixing) if mixing else None

    def forward(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.normalise(self.geometric(pixels), labels)
        return (images, labels) if self.mix is None else self.mix(images, labels)
