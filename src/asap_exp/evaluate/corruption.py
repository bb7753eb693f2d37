"""Corrupted test images, unlike those of the calibration: noise, blur, less contrast.

Severities resemble those of CIFAR-10-C (Hendrycks and Dietterich, 2019), but the images are made
here with torchvision: numbers are not comparable with those on that data set's own images.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from asap_exp.core.config import CorruptionConfig
from asap_exp.core.errors import UserError
from asap_exp.data.loader import BatchLoader, DeviceLoader
from asap_exp.data.sources import Images

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
"""Standard deviation for pixels between 0 and 1, by severity."""
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)
"""Standard deviation in pixels, by severity."""
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
"""Remaining share of each pixel's distance to the image's mean grey, by severity."""


def noise(pixels: Tensor, strength: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (pixels + strength * normal).clamp(0, 1)


def blur(pixels: Tensor, strength: float) -> Tensor:
    radius = min(round(4 * strength), min(pixels.shape[-2:]) - 1)
    return functional.gaussian_blur(pixels, [2 * radius + 1] * 2, [strength] * 2)


def contrast(pixels: Tensor, strength: float) -> Tensor:
    return functional.adjust_contrast(pixels, strength)


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "noise": (noise, NOISE),
    "blur": (blur, BLUR),
    "contrast": (contrast, CONTRAST),
}


def corrupted(loader: BatchLoader, config: CorruptionConfig) -> BatchLoader:
    """Return a loader of the images with one corruption; unchanged if no name is given."""
    if config.name is None:
        return loader
    if not isinstance(loader, DeviceLoader):
        raise UserError(
            f"corruption.name={config.name} is for images, and this task has texts; set "
            "corruption.name=null"
        )
    change, strengths = CORRUPTIONS[config.name]
    images = loader.images
    pixels, labels = (x.to(loader.device) for x in images.gathered(slice(None)))
    pixels = functional.to_dtype(pixels, torch.float32, scale=True)
    changed = change(pixels, strengths[config.severity - 1])
    restored = functional.to_dtype(changed, torch.uint8, scale=True)
    source = f"{images.source}, with {config.name} of severity {config.severity}"
    return DeviceLoader(Images(restored, labels, source), loader.batch_size, loader.transform)
