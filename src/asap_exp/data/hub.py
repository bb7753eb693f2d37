"""Data sets from the Hugging Face hub, through the copies that `datasets` prepares in the cache."""

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
from asap_exp.data.reach import endpoint, require_reachable

Repository = tuple[str, ...]
"""Name of a repository on the hub, followed by the configuration if it has several."""


def hub_rows(repository: Repository, split: str, cache: Path) -> Any:
    """Return the rows that the hub has now, preparing them again if the cached copy is damaged."""
    import datasets

    datasets.disable_progress_bars()
    folder = str(cache / "datasets")
    rows = datasets.load_dataset(*repository, split=split, cache_dir=folder)
    if damaged_files(rows):
        rows = datasets.load_dataset(
            *repository, split=split, cache_dir=folder, download_mode="reuse_cache_if_exists"
        )
        for file in files_of(rows):
            hash_file(file).unlink(missing_ok=True)
    remember(rows)
    return rows


def hub_splits(repository: Repository, cache: Path) -> dict[str, Any]:
    """Return the rows of each split of a data set, as the hub or an earlier run's copy has them.

    Loading executes no code of the repository. Raises whatever the hub answered if there is no
    copy.
    """
    import datasets

    try:
        require_reachable(endpoint())
        names = datasets.get_dataset_split_names(*repository)
        return {name: hub_rows(repository, name, cache) for name in names}
    except Exception:
        copy = unchecked(repository, None, cache)
        if copy is None:
            raise
        return {name: checked(rows) for name, rows in copy.items()}


def prepared_rows(repository: Repository | None, split: str, cache: Path) -> Any | None:
    """Return the rows that an earlier run prepared, or None if there are none; needs no network.

    Raises UserError if the prepared files are damaged.
    """
    rows = None if repository is None else unchecked(repository, split, cache)
    return None if rows is None else checked(rows)


def checked(rows: Any) -> Any:
    """Return prepared `rows`; raise UserError if their files are damaged."""
    if damaged := damaged_files(rows):
        raise UserError(
            f"{damaged[0]} has changed since it was prepared; remove {damaged[0].parent} and "
            "run again with a network"
        )
    remember(rows)
    return rows


def unchecked(repository: Repository, split: str | None, cache: Path) -> Any | None:
    """Return the rows of a prepared copy without checking its files, or None if there is none.

    Without a `split`, these are the rows of each split.
    """
    folder = cache / "datasets"
    if not (folder / repository[0].replace("/", "___")).is_dir():
        return None
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    datasets.disable_progress_bars()
    name, *configuration = repository
    with quiet():
        try:
            return Cache(
                cache_dir=str(folder),
                repo_id=name,
                dataset_name=name.rpartition("/")[2],
                config_name=configuration[0] if configuration else None,
                version="auto",
                hash="auto",
            ).as_dataset(split=split)
        except (OSError, ValueError, KeyError):
            return None


def prepared_names(dataset: Dataset, cache: Path) -> tuple[str, ...] | None:
    """Return the class names of the prepared training split, or None if there is no such split."""
    if dataset.hub is None or not dataset.num_classes:
        return None
    rows = unchecked(dataset.hub, "train", cache)
    return None if rows is None else class_names(rows.data.table.schema, dataset.label_column)


def files_of(rows: Any) -> list[Path]:
    """Return the paths of the files behind `rows`."""
    return [Path(file["filename"]) for file in rows.cache_files]


def damaged_files(rows: Any) -> list[Path]:
    """Return the files whose hash differs from the one that `remember` wrote."""
    known = [file for file in files_of(rows) if hash_file(file).is_file()]
    return [f for f in known if hash_file(f).read_text().strip() != file_sha256(f)]


def remember(rows: Any) -> None:
    """Write the hash of each file next to it, if that folder is writable."""
    for file in files_of(rows):
        if not hash_file(file).is_file():
            with contextlib.suppress(UserError):  # a shared copy may be read-only
                write_text(hash_file(file), f"{file_sha256(file)}\n")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the notice of `datasets` that it uses the newest copy in the cache."""
    logger = logging.getLogger("datasets.packaged_modules.cache.cache")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
