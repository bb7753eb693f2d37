"""Decoded images, kept in the cache under a hash of their files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import PIL
import torch
from torch import Tensor

from asap_exp.data.cache import cached_array
from asap_exp.data.catalog import ImageDataset
from asap_exp.data.image_decoding import decoded_pixels
from asap_exp.data.parquet import Part


def kept_pixels(
    parts: Iterable[Part],
    rows: int,
    dataset: ImageDataset,
    cache: Path,
    content: str | None,
    size: int | None = None,
) -> Tensor:
    """Return the pixels of `rows` images, uint8 `[rows, channels, size, size]`.

    They are decoded once per `content`, the hash of their files, and else taken from the cache; not
    kept without a hash.
    """
    if content is None:
        return torch.from_numpy(decoded_pixels(parts, rows, dataset, size))
    made_of = f"{content} {dataset.image_column} {dataset.channels} {size} {PIL.__version__}"
    key = hashlib.sha256(made_of.encode()).hexdigest()
    file = cache / "datasets" / "decoded" / f"{key}.npy"
    return torch.from_numpy(cached_array(file, lambda: decoded_pixels(parts, rows, dataset, size)))
