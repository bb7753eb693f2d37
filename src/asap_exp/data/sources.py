"""Where data comes from: embedded, a local folder of Parquet files, the hub, or torchvision.

Each source gives a whole split, or says in one phrase why it cannot; the first that can is taken.
No source waits on an unreachable network for more than `REACH_SECONDS`.
"""

import contextlib
import hashlib
import io
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from asap_exp.data.catalog import Dataset, ImageDataset
from asap_exp.errors import UserError
from asap_exp.locations import cache_dir, data_root

Samples = TypeVar("Samples")
Decode = Callable[[Any, str], Samples]
"""From the rows of a Hugging Face data set, and the name of their source."""

SPLITS = ("train", "test")
REACH_SECONDS = 8
DIGITS_TEST_ROWS = 540
# Asking each of PIL's formats in turn takes as long as decoding a small image.
IMAGE_FORMATS = ("PNG", "WEBP", "JPEG")


class Images(NamedTuple):
    """`pixels` uint8 `[rows, channels, size, size]`, `labels` int64 `[rows]`, and their source."""

    pixels: Tensor
    labels: Tensor
    source: str

    @property
    def rows(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Images":
        index = torch.from_numpy(rows).to(self.pixels.device)
        return Images(self.pixels[index], self.labels[index], self.source)

    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels in their order: the same whatever the source."""
        return fingerprint(self.pixels, self.labels)


class Unavailable(Exception):
    """Why a source cannot give a data set, in one phrase."""


def load_images(dataset: ImageDataset, split: str, root: str | None, cache: str | None) -> Images:
    """The rows of `split`, in their stored order; UserError names every way to provide the data."""
    if dataset.name == "digits":
        return digits(split)
    return first_available(
        dataset,
        split,
        root,
        cache,
        lambda rows, source: decoded(rows, dataset, source),
        {"torchvision": lambda: from_torchvision(dataset, split, cache_dir(cache))},
    )


def first_available(
    dataset: Dataset,
    split: str,
    root: str | None,
    cache: str | None,
    decode: Decode[Samples],
    others: Mapping[str, Callable[[], Samples]] = MappingProxyType({}),
) -> Samples:
    """The split from the first source that has it; `others` are asked last."""
    root = data_root(root)
    folder = cache_dir(cache)
    reasons = []
    sources: dict[str, Callable[[], Samples]] = {
        "local folder": lambda: from_parquet(dataset, split, root, folder, decode),
        "Hugging Face hub": lambda: from_hub(dataset, split, folder, decode),
        **others,
    }
    for name, load in sources.items():
        try:
            return load()
        except Unavailable as reason:
            reasons.append(f"{name}: {reason}")
    ways = [
        f"a local folder with {dataset.folders[0]}/train.parquet (or train-*.parquet) and "
        f"{dataset.folders[0]}/test.parquet (data.root=FOLDER or ASAP_EXP_DATA=FOLDER; "
        "scripts/download_data.py makes it on a machine with a network)",
        "a network that reaches the Hugging Face hub",
        *(f"one that reaches {name}'s download" for name in others),
    ]
    number = {2: "two", 3: "three"}[len(ways)]
    raise UserError(
        f"the data set {dataset.name} was not found ({'; '.join(reasons)}). Provide it in one of "
        f"{number} ways: {', or '.join(ways)}."
    )


def digits(split: str) -> Images:
    """scikit-learn's 1,797 digits; the split (540 test rows, by class, seed 0) is ours."""
    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)[:, None]
    rows = train_test_split(
        np.arange(len(pixels)), test_size=DIGITS_TEST_ROWS, stratify=bunch.target, random_state=0
    )[SPLITS.index(split)]
    rows = np.sort(rows)
    labels = torch.from_numpy(bunch.target[rows]).long()
    return Images(torch.from_numpy(pixels[rows]), labels, "embedded in scikit-learn")


def parquet_files(folder: Path, split: str) -> list[Path]:
    """SPLIT.parquet, or else its shards; UserError where a shard is missing."""
    whole = folder / f"{split}.parquet"
    if whole.is_file():
        return [whole]
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    totals = {file.stem.rpartition("-of-")[2] for file in shards if "-of-" in file.stem}
    if totals and {int(total) for total in totals} != {len(shards)}:
        raise UserError(
            f"{folder} holds {len(shards)} shards of {split}, but they are named as "
            f"{' and '.join(sorted(totals))}; a subset is not taken for the whole"
        )
    return shards


def from_parquet(
    dataset: Dataset, split: str, root: str | None, cache: Path, decode: Decode[Samples]
) -> Samples:
    if root is None:
        raise Unavailable("neither data.root nor ASAP_EXP_DATA is set")
    folders = [Path(root) / name for name in dataset.folders]
    files, folder = next(
        ((found, folder) for folder in folders if (found := parquet_files(folder, split))),
        ([], folders[0]),
    )
    if not files:
        where = " or ".join(map(str, folders))
        raise Unavailable(f"no {split}.parquet or {split}-*.parquet in {where}")
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            "parquet",
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(cache / "datasets"),
        )
        return decode(rows, "local Parquet files")
    except Exception as error:
        raise UserError(
            f"the Parquet files of {dataset.name} in {folder} could not be read "
            f"({type(error).__name__}: {error}); fetch them again with scripts/download_data.py"
        ) from error


def from_hub(dataset: Dataset, split: str, cache: Path, decode: Decode[Samples]) -> Samples:
    if dataset.hub is None:
        raise Unavailable("not there")
    require_reachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    import datasets

    try:
        rows = datasets.load_dataset(*dataset.hub, split=split, cache_dir=str(cache / "datasets"))
        return decode(rows, f"Hugging Face hub, {' '.join(dataset.hub)}")
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error


def from_torchvision(dataset: ImageDataset, split: str, cache: Path) -> Images:
    if dataset.torchvision is None:
        raise Unavailable("not there")
    import torchvision

    factory = getattr(torchvision.datasets, dataset.torchvision)
    folder = cache / "torchvision"
    try:
        if not (folder / factory.base_folder).is_dir():
            require_reachable(factory.url)
        rows = factory(str(folder), train=split == "train", download=True)
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    pixels = torch.from_numpy(np.asarray(rows.data)).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.tensor(rows.targets), f"torchvision {dataset.torchvision}")


def decoded(rows: Any, dataset: ImageDataset, source: str) -> Images:
    """Every image of a Hugging Face data set, decoded to uint8."""
    import datasets

    # The library's own decoding goes row by row and takes most of the time.
    table = rows.cast_column(dataset.image_column, datasets.Image(decode=False))[:]
    mode = {1: "L", 3: "RGB"}[dataset.channels]
    pixels = np.stack([decoded_image(row["bytes"], mode) for row in table[dataset.image_column]])
    pixels = pixels[:, None] if dataset.channels == 1 else pixels.transpose(0, 3, 1, 2)
    labels = torch.tensor(table[dataset.label_column])
    return Images(torch.from_numpy(np.ascontiguousarray(pixels)), labels, source)


def decoded_image(content: bytes, mode: str) -> np.ndarray:
    """uint8 `[height, width]`, with channels last where `mode` has several."""
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
        return np.asarray(image.convert(mode))


def require_reachable(url: str) -> None:
    """Raises Unavailable unless something answers at `url` within REACH_SECONDS."""
    failure: list[str] = [f"no answer within {REACH_SECONDS} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with contextlib.suppress(urllib.error.HTTPError):  # an answer all the same
                urllib.request.urlopen(request, timeout=REACH_SECONDS)
        except Exception as error:
            failure[0] = str(getattr(error, "reason", error))
            return
        failure.clear()

    # Name resolution has no timeout of its own, so the wait is on the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if failure:
        raise Unavailable(f"{urlsplit(url).netloc or url} was not reached ({failure[0]})")


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 over shapes and values, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
