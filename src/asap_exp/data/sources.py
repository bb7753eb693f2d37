"""Sources of data: embedded, a local folder of Parquet files, the hub, or torchvision.

Each source returns a whole split or says in one phrase why it cannot; the first that can is used.
No source waits for an unreachable network longer than `reach.REACH_SECONDS`.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from asap_exp.core.errors import DataNotFound, UserError
from asap_exp.core.locations import cache_dir, data_root
from asap_exp.data.cache import file_sha256
from asap_exp.data.catalog import Dataset, ImageDataset
from asap_exp.data.hub import hub_rows, prepared_names, prepared_rows
from asap_exp.data.image_decoding import stored_sizes
from asap_exp.data.labels import Names, labels_of, training_order
from asap_exp.data.parquet import Part, class_names, parquet_files, read_parts, taken
from asap_exp.data.pixels import kept_pixels
from asap_exp.data.reach import Unavailable, endpoint, require_reachable
from asap_exp.data.subset import WHOLE, Limit
from asap_exp.data.undivided import check_has_training, divides, rows_of, source_words

Samples = TypeVar("Samples")


class Found(NamedTuple):
    """Rows of a split, their source, and the class names of the training split."""

    parts: list[Part]
    source: str
    training: Names
    content: str | None = None
    """Hash of the files, if they are local."""
    divided: str | None = None
    """The split that part of these rows are, if the source is not divided into splits."""


Decode = Callable[[Found], Samples]

SPLITS = ("train", "test")
DIGITS_TEST_ROWS = 540
HASHED_AT_ONCE = 1000
"""Images that are hashed at once, where all of them do not fit in memory."""


class Images(NamedTuple):
    """`pixels` uint8 `[rows, channels, size, size]`, `labels` int64 `[rows]`, and their source.

    `names` are the class names, if the source has them. With `picked` `[rows]`, the images are
    those rows of `pixels`, which are more than can be copied. `undivided` is the number of all rows
    of a source that is not divided into splits.
    """

    pixels: Tensor
    labels: Tensor
    source: str
    names: Names = None
    picked: Tensor | None = None
    undivided: int | None = None

    @property
    def rows(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Images":
        chosen = torch.from_numpy(rows).to(self.pixels.device)
        if self.picked is not None:
            return self._replace(labels=self.labels[chosen], picked=self.picked[chosen])
        return self._replace(pixels=self.pixels[chosen], labels=self.labels[chosen])

    def uncopied(self) -> "Images":
        """Return the same images such that `take` copies no pixels."""
        return self._replace(picked=torch.arange(self.rows))

    def gathered(self, rows: Tensor | slice, *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Return pixels and labels of some rows; `pinned` ones can be copied in the background."""
        if self.picked is None:
            return self.pixels[rows], self.labels[rows]
        chosen, labels = self.picked[rows], self.labels[rows]
        pixels = torch.empty(
            len(chosen), *self.pixels.shape[1:], dtype=self.pixels.dtype, pin_memory=pinned
        )
        torch.index_select(self.pixels, 0, chosen, out=pixels)
        return pixels, labels.pin_memory() if pinned else labels

    def fingerprint(self) -> str:
        """Return the SHA-256 of pixels and labels in order; it does not depend on the source."""
        if self.picked is None:
            return fingerprint(self.pixels, self.labels)
        digest = hashlib.sha256(str((self.rows, *self.pixels.shape[1:])).encode())
        for start in range(0, self.rows, HASHED_AT_ONCE):
            pixels, _ = self.gathered(slice(start, start + HASHED_AT_ONCE))
            digest.update(pixels.numpy().data)
        update_digest(digest, self.labels)
        return digest.hexdigest()


def load_images(
    dataset: ImageDataset,
    split: str,
    root: str | None,
    cache: str | None,
    limit: Limit = WHOLE,
    size: int | None = None,
) -> Images:
    """Return the rows of `split` in their stored order, of which no more are decoded than `limit`.

    With a `size` each image is fitted to it when it is decoded. Raises DataNotFound that lists
    every way to provide the data.
    """
    if dataset.name == "digits":
        return subset(digits(split), limit)
    folder = cache_dir(cache)
    return first_available(
        dataset,
        split,
        root,
        cache,
        lambda found: decoded(found, dataset, folder, limit, size),
        {"torchvision": lambda: subset(from_torchvision(dataset, split, folder), limit)},
    )


def subset(images: Images, limit: Limit) -> Images:
    """Return the images that are within the limit."""
    rows = limit.rows(images.labels.numpy())
    return images if rows is None else images.take(rows)


def first_available(
    dataset: Dataset,
    split: str,
    root: str | None,
    cache: str | None,
    decode: Decode[Samples],
    others: Mapping[str, Callable[[], Samples]] = MappingProxyType({}),
) -> Samples:
    """Return the split from the first source that has it; `others` are tried last."""
    folder = cache_dir(cache)
    reasons = []
    sources: dict[str, Callable[[], Samples]] = {
        "local folder": lambda: from_parquet(dataset, split, root, folder, decode),
        "Hugging Face hub": lambda: from_hub(dataset, split, root, folder, decode),
        **others,
    }
    for name, ask in sources.items():
        try:
            return ask()
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
    raise DataNotFound(
        f"the data set {dataset.name} was not found ({'; '.join(reasons)}). Provide it in one of "
        f"{number} ways: {', or '.join(ways)}"
    )


def digits(split: str) -> Images:
    """Return scikit-learn's 1,797 digits, split by us: 540 test rows, stratified, seed 0."""
    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)[:, None]
    rows = train_test_split(
        np.arange(len(pixels)), test_size=DIGITS_TEST_ROWS, stratify=bunch.target, random_state=0
    )[SPLITS.index(split)]
    rows = np.sort(rows)
    labels = torch.from_numpy(bunch.target[rows]).long()
    return Images(torch.from_numpy(pixels[rows]), labels, "embedded in scikit-learn")


def at_hand(
    dataset: Dataset, split: str, root: str | None, cache: str | None, columns: Sequence[str]
) -> Found | None:
    """Return the columns of a split that needs no network, or None if there is no such copy."""
    folder = cache_dir(cache)
    try:
        return found_locally(dataset, split, root, folder, columns, hashed=False)
    except Unavailable:
        rows = prepared_rows(dataset.hub, on_hub(dataset, split), folder)
    return None if rows is None else found_on_hub(dataset, rows, split, root, folder)


def local_files(dataset: Dataset, split: str, root: str | None) -> list[Path]:
    """Return the Parquet files of a split, from the first candidate folder that has any.

    Raises Unavailable if there are none.
    """
    folder_of_sets = data_root(root)
    if folder_of_sets is None:
        raise Unavailable("neither data.root nor ASAP_EXP_DATA is set")
    folders = [Path(folder_of_sets) / name for name in dataset.folders]
    for folder in folders:
        if files := parquet_files(folder, split):
            return files
    raise Unavailable(
        f"no {split}.parquet or {split}-*.parquet in {' or '.join(map(str, folders))}"
    )


def from_parquet(
    dataset: Dataset, split: str, root: str | None, cache: Path, decode: Decode[Samples]
) -> Samples:
    """Return the split from local Parquet files, or raise Unavailable."""
    return decode(found_locally(dataset, split, root, cache, dataset.columns))


def found_locally(
    dataset: Dataset,
    split: str,
    root: str | None,
    cache: Path,
    columns: Sequence[str],
    *,
    hashed: bool = True,
) -> Found:
    """Read the columns of a split from local Parquet files, or raise Unavailable."""
    files, divided = local_rows(dataset, split, root)
    with reading(dataset, files):
        parts = read_parts(files, columns)
        content = " ".join(map(file_sha256, files)) if hashed else None
    training = training_names(dataset, root, cache)
    return Found(parts, "local Parquet files", training, content, divided)


def local_rows(dataset: Dataset, split: str, root: str | None) -> tuple[list[Path], str | None]:
    """Return the files with the rows of a split, and the split if they hold the other one too.

    Raises Unavailable if there are none, and UserError for a test split whose training split is
    missing though no other source is divided like it.
    """
    if not divides(dataset):
        return local_files(dataset, split, root), None
    there = {}
    for name in SPLITS:
        with contextlib.suppress(Unavailable):
            there[name] = local_files(dataset, name, root)
    if "test" in there:
        check_has_training(dataset, "train" in there, str(there["test"][0].parent))
        return there[split], None
    return local_files(dataset, "train", root), split


def training_names(dataset: Dataset, root: str | None, cache: Path) -> Names:
    """Return the class names of the trained model's data, else of the available training split."""
    if dataset.trained_names is not None:
        return dataset.trained_names
    try:
        files = local_files(dataset, "train", root)
    except Unavailable:
        # The leading None keeps the order of the hub's files from overriding the catalogue's.
        return training_order([None, prepared_names(dataset, cache)], dataset)
    with reading(dataset, files):
        named = [class_names(pq.read_schema(file), dataset.label_column) for file in files]
    return training_order(named, dataset)


@contextlib.contextmanager
def reading(dataset: Dataset, files: Sequence[Path]) -> Iterator[None]:
    """Add the data set and its folder to errors raised while its files are read."""
    try:
        yield
    except (OSError, pa.ArrowException, UserError) as error:
        raise UserError(
            f"the Parquet files of {dataset.name} in {files[0].parent} could not be read: {error}"
        ) from error


def from_hub(
    dataset: Dataset, split: str, root: str | None, cache: Path, decode: Decode[Samples]
) -> Samples:
    """Return the split from the hub or from a copy prepared earlier, or raise Unavailable."""
    if dataset.hub is None:
        raise Unavailable("not there")
    try:
        require_reachable(endpoint())
        rows = hub_rows(dataset.hub, on_hub(dataset, split), cache)
    except UserError:
        raise
    except Exception as error:
        rows = prepared_rows(
            dataset.hub, on_hub(dataset, split), cache
        )  # fall back on an earlier run's copy
        if rows is None:
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(f"{type(error).__name__}: {error}") from error
    return decode(found_on_hub(dataset, rows, split, root, cache))


def found_on_hub(dataset: Dataset, rows: Any, split: str, root: str | None, cache: Path) -> Found:
    source = f"Hugging Face hub, {' '.join(dataset.hub or ())}"
    part = Part(source, rows.data.table)
    training = dataset.trained_names
    if training is None and split != "train":
        training = training_names(dataset, root, cache)
    return Found([part], source, training, divided=split if divides(dataset) else None)


def on_hub(dataset: Dataset, split: str) -> str:
    """Return the split of the hub's copy that has the rows of `split`."""
    return "train" if divides(dataset) else split


def from_torchvision(dataset: ImageDataset, split: str, cache: Path) -> Images:
    """Return the split through torchvision's download, or raise Unavailable."""
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


def decoded(
    found: Found, dataset: ImageDataset, cache: Path, limit: Limit, size: int | None = None
) -> Images:
    """Return images and labels; pixels of local files are cached by content."""
    labels = labels_of(found.parts, dataset, found.training)
    rows = chosen_rows(found, dataset, labels.numbers, limit)
    parts, numbers = found.parts, labels.numbers
    if rows is not None:
        parts, numbers = taken(parts, rows), numbers[rows]
    content = found.content
    if content is not None and rows is not None:
        content = hashlib.sha256(content.encode() + rows.tobytes()).hexdigest()
    pixels = kept_pixels(parts, len(numbers), dataset, cache, content, size)
    images = Images(pixels, torch.from_numpy(numbers), found.source, labels.names)
    if not dataset.several_sizes:
        return images
    source = f"{found.source}, {stored_sizes(parts, dataset)}"
    if found.divided is None:
        return images._replace(source=source)
    words = source_words(dataset, source)
    return images._replace(source=words, undivided=len(labels.numbers))


def chosen_rows(
    found: Found, dataset: ImageDataset, labels: np.ndarray, limit: Limit
) -> np.ndarray | None:
    """Return the rows of the split among those that were found, within the limit; None for all."""
    if found.divided is None:
        return limit.rows(labels)
    rows = rows_of(dataset, found.divided, labels)
    within = limit.rows(labels[rows])
    return rows if within is None else rows[within]


def check_labels(dataset: ImageDataset, split: str, root: str | None, cache: str | None) -> None:
    """Raise UserError if an available split has unusable labels, without decoding its images."""
    if dataset.name == "digits":
        return
    found = at_hand(dataset, split, root, cache, [dataset.label_column])
    if found is not None:
        labels_of(found.parts, dataset, found.training)


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256 of shapes and values, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        update_digest(digest, tensor)
    return digest.hexdigest()


def update_digest(digest: "hashlib._Hash", tensor: Tensor) -> None:
    digest.update(str(tuple(tensor.shape)).encode())
    digest.update(tensor.cpu().contiguous().numpy().data)  # no copy
