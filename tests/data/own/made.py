"""Small data sets of one's own, in every form: image folders, Parquet, CSV and JSON lines files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from asap_exp.core.composing import compose
from asap_exp.core.config import TrainConfig
from asap_exp.data.build import build_data
from asap_exp.data.module import TaskDataModule
from asap_exp.data.own.find import found
from tests.data.parquet import encoded

CLASSES = ("ant", "bee", "cat")


def noise(rows: int, size: tuple[int, int] = (12, 12), seed: int = 0) -> list[np.ndarray]:
    """Return images of noise, width x height, so that no two are equal."""
    draw = np.random.default_rng(seed)
    return list(draw.integers(0, 256, (rows, size[1], size[0], 3), dtype=np.uint8))


def write_folder(
    folder: Path,
    per_class: int = 20,
    classes: Sequence[str] = CLASSES,
    *,
    size: tuple[int, int] = (12, 12),
    seed: int = 0,
    grey: bool = False,
) -> Path:
    """Write an image folder with one folder per class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row, pixels in enumerate(noise(per_class, size, seed=100 * seed + number)):
            image = Image.fromarray(pixels[:, :, 0] if grey else pixels)
            image.save(folder / name / f"{row:03}.png")
    return folder


def write_images(
    file: Path, labels: Sequence[Any], names: Sequence[str] | None = None, **others: Any
) -> Path:
    """Write images of noise to a Parquet file; with `names`, the labels are numbers of classes."""
    images = [encoded(pixels, "PNG") for pixels in noise(len(labels))]
    if names is None:
        columns = {"image": pa.array(images), "label": pa.array(labels), **others}
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        return file
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    rows = datasets.Dataset.from_dict(
        {"image": images, "label": list(labels)}, features=datasets.Features(features)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(str(file))
    return file


def write_csv(file: Path, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.csv.write_csv(pa.table(columns), file)
    return file


def write_json_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def sentences(rows: int, classes: Sequence[str] = CLASSES) -> dict[str, list[str]]:
    """Return texts that name their class, and the classes, in turn."""
    labels = [classes[row % len(classes)] for row in range(rows)]
    return {
        "text": [f"Row {row} is about a {label}, again" for row, label in enumerate(labels)],
        "label": labels,
    }


def request(task: str, path: Path | str, *overrides: str, cache: Path | None = None) -> TrainConfig:
    """Compose the request for own data at `path`."""
    kept = [] if cache is None else [f"data.cache={cache}"]
    return compose("train", [f"task={task}", f"data.path='{path}'", *kept, *overrides], TrainConfig)


def looked_up(
    task: str, path: Path | str, *overrides: str, cache: Path | None = None
) -> TrainConfig:
    """Return the complete configuration for own data."""
    return found(request(task, path, *overrides, cache=cache))


def module_of(config: TrainConfig, folder: Path | None = None) -> TaskDataModule:
    return build_data(config.data, batch_size=config.recipe.batch_size, seed=0, folder=folder)


def loaded(task: str, path: Path | str, *overrides: str, cache: Path) -> TaskDataModule:
    """Return the data module of own data, set up."""
    data = module_of(looked_up(task, path, *overrides, cache=cache))
    data.setup()
    return data
