"""Data sets of the Hugging Face hub, in the copies that its library prepares in the cache."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asap_exp.core.errors import UserError
from asap_exp.core.files import write_text
from asap_exp.data.cache import file_sha256, hash_file
from asap_exp.data.catalog import Dataset
from asap_exp.data.parquet import class_names


def hub_rows(dataset: Dataset, split: str, cache: Path) -> Any:
    """The rows that the hub has now; a prepared copy that was damaged is made again."""
    import datasets

    assert dataset.hub is not None
    datasets.disable_progress_bars()
    folder = str(cache / "datasets")
    rows = datasets.load_dataset(*dataset.hub, split=split, cache_dir=folder)
    if damaged_files(rows):
        rows = datasets.load_dataset(
            *dataset.hub, split=split, cache_dir=folder, download_mode="reuse_cache_if_exists"
        )
        for file in files_of(rows):
            hash_file(file).unlink(missing_ok=True)
    remember(rows)
    return rows


def prepared_rows(dataset: Dataset, split: str, cache: Path) -> Any | None:
    """The rows that an earlier run prepared; None where there are none. Needs no network.

    UserError where they are damaged.
    """
    rows = unchecked_rows(dataset, split, cache)
    if rows is None:
        return None
    if damaged := damaged_files(rows):
        raise UserError(
            f"{damaged[0]} is no longer what was prepared there; remove {damaged[0].parent} and "
            "run once more with a network"
        )
    remember(rows)
    return rows


def unchecked_rows(dataset: Dataset, split: str, cache: Path) -> Any | None:
    """The rows of a prepared copy, whether or not its files are what they were."""
    folder = cache / "datasets"
    if dataset.hub is None or not (folder / dataset.hub[0].replace("/", "___")).is_dir():
        return None
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    datasets.disable_progress_bars()
    repository, *configuration = dataset.hub
    with quiet():
        try:
            return Cache(
                cache_dir=str(folder),
                repo_id=repository,
                dataset_name=repository.rpartition("/")[2],
                config_name=configuration[0] if configuration else None,
                version="auto",
                hash="auto",
            ).as_dataset(split=split)
        except (OSError, ValueError, KeyError):
            return None


def prepared_names(dataset: Dataset, cache: Path) -> tuple[str, ...] | None:
    """What the prepared training split calls the classes; None where that is not there."""
    rows = unchecked_rows(dataset, "train", cache) if dataset.num_classes else None
    return None if rows is None else class_names(rows.data.table.schema, dataset.label_column)


def files_of(rows: Any) -> list[Path]:
    return [Path(file["filename"]) for file in rows.cache_files]


def damaged_files(rows: Any) -> list[Path]:
    """Those that are no longer what `remember` saw."""
    known = [file for file in files_of(rows) if hash_file(file).is_file()]
    return [f for f in known if hash_file(f).read_text().strip() != file_sha256(f)]


def remember(rows: Any) -> None:
    """Writes the hash of each file beside it, where that can be written."""
    for file in files_of(rows):
        if not hash_file(file).is_file():
            with contextlib.suppress(UserError):  # a copy that is shared may be read-only
                write_text(hash_file(file), f"{file_sha256(file)}\n")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leaves out the library's notice that it uses the newest copy in the cache."""
    logger = logging.getLogger("datasets.packaged_modules.cache.cache")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
