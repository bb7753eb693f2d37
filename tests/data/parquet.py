"""Tiny data sets in the form of the hub and of local folders: Parquet files with a schema."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from asap_exp.data.catalog import ImageDataset, TextDataset


def make_pixels(rows: int, seed: int = 0) -> np.ndarray:
    """Return uint8 noise `[rows, 32, 32, 3]`, so that no two images are equal."""
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, image_format: str) -> dict:
    """Encode one image losslessly, as a value of a Parquet column."""
    buffer = io.BytesIO()
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(
    file: Path,
    dataset: ImageDataset,
    pixels: np.ndarray,
    labels: list[int],
    image_format: str = "PNG",
) -> None:
    columns = {
        dataset.image_column: [encoded(image, image_format) for image in pixels],
        dataset.label_column: labels,
    }
    features = {
        dataset.image_column: datasets.Image(),
        dataset.label_column: datasets.ClassLabel(num_classes=dataset.num_classes),
    }
    if dataset.name == "cifar100":
        columns["coarse_label"] = [label % 20 for label in labels]
        features["coarse_label"] = datasets.ClassLabel(num_classes=20)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(str(file))


def write_texts(
    file: Path, dataset: TextDataset, texts: list[str], labels: list[int] | None = None
) -> None:
    """Write a split of a text data set with the columns and types that the hub uses."""
    columns: dict = {dataset.text_column: texts}
    features = {dataset.text_column: datasets.Value("string")}
    if dataset.num_classes:
        columns[dataset.label_column] = labels
        features[dataset.label_column] = datasets.ClassLabel(num_classes=dataset.num_classes)
    if dataset.name == "dbpedia":
        columns["title"] = ["A title"] * len(texts)
        features["title"] = datasets.Value("string")
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(str(file))
