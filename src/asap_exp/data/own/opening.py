"""Reader of own data, whatever holds them: files, an image folder, or the Hugging Face hub."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asap_exp.core.errors import DataNotFound, UserError
from asap_exp.data.cache import file_sha256
from asap_exp.data.hub import files_of, hub_splits
from asap_exp.data.own.image_folders import ImageFolders
from asap_exp.data.own.places import FOLDER, HUB, SPLIT_WORDS, locate, split_of
from asap_exp.data.own.readers import ParquetFiles, Reader, TextFiles
from asap_exp.data.parquet import Part

REASON = 300
"""Characters that are shown of what the hub answered."""


def open_own(
    path: str, root: str | None, cache: Path, configuration: str | None, kind: str
) -> Reader:
    """Return the reader of the own data of `kind`, images or texts, at `path`.

    Raises DataNotFound if nothing is there.
    """
    place = locate(path, root, kind)
    if place.format == HUB:
        names = [path, configuration] if configuration else [path]
        try:
            return HubRows(names, cache)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:REASON]
            raise DataNotFound(
                f"data.path={path} is neither a file nor a folder here, nor could it be fetched "
                f"from the Hugging Face hub ({reason}). Give a file, a folder or a name that is "
                "there; data.configuration=NAME chooses one of several configurations"
            ) from error
    if configuration is not None:
        raise UserError(
            f"data.configuration={configuration} is for a data set on the hub; {path} is here"
        )
    if place.format == FOLDER:
        return ImageFolders(place)
    return ParquetFiles(place) if place.format == "Parquet" else TextFiles(place)


class HubRows(Reader):
    """Data set of the Hugging Face hub, as `datasets` prepares it in the cache."""

    def __init__(self, repository: Sequence[str], cache: Path) -> None:
        self.path, self.source = repository[0], f"Hugging Face hub, {' '.join(repository)}"
        self.rows = self._known(hub_splits(tuple(repository), cache))

    def _known(self, found: dict[str, Any]) -> dict[str, Any]:
        told = {split_of(name): rows for name, rows in found.items()}
        known = {split: told[split] for split in SPLIT_WORDS if split in told}
        if "train" not in known:
            raise UserError(
                f"{self.source} has the splits {', '.join(found)}, but none to train on"
            )
        return known

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.rows)

    def schema(self, split: str) -> pa.Schema:
        return self.rows[split].data.table.schema

    def count(self, split: str) -> int:
        return len(self.rows[split])

    def read(
        self, split: str, columns: Sequence[str], rows: np.ndarray | None = None
    ) -> Iterator[Part]:
        part = Part(self.source, self.rows[split].data.table.select(list(columns)))
        yield part if rows is None else part.take(rows)

    def content(self, split: str, rows: np.ndarray) -> str:
        digest = hashlib.sha256(rows.astype(np.int64).tobytes())
        for file in files_of(self.rows[split]):
            digest.update(file_sha256(file).encode())
        return digest.hexdigest()

    def listing(self) -> list[tuple[str, str, int]]:
        return [(split, self.source, self.count(split)) for split in self.splits]
