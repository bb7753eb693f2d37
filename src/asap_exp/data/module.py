"""Base class of the LightningDataModules, for images and texts."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor

from asap_exp.core.config import DataConfig
from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_json
from asap_exp.core.objectives import CLASSIFICATION, Objective
from asap_exp.core.ranks import ALONE, Ranks
from asap_exp.data.carving import carved
from asap_exp.data.catalog import Dataset
from asap_exp.data.labels import Names
from asap_exp.data.loader import BatchLoader
from asap_exp.data.run_files import CLASSES, CLASSES_HASH, kept_names, names_hash
from asap_exp.data.subset import Limit

if TYPE_CHECKING:
    from asap_exp.data.raw_texts import RawTexts


class Rows(Protocol):
    """Rows of a split, on a device."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def source(self) -> str: ...

    @property
    def rows(self) -> int: ...

    def take(self, rows: np.ndarray) -> Self:
        """Return the given rows, in the given order."""

    def fingerprint(self) -> str:
        """Return the SHA-256 of the contents in order; it does not depend on the source."""


Kind = TypeVar("Kind", bound=Rows)


class TaskDataModule(L.LightningDataModule, ABC, Generic[Kind]):
    """Training, validation, calibration and test samples, held on `device`.

    The validation rows are split off the training rows, stratified by class, with
    `config.split_seed`, unless the data set has its own validation split. Only `test_dataloader`
    loads the test split.
    """

    dataset: Dataset
    sample_name: str
    """Name of the samples, in the plural."""

    def __init__(
        self,
        config: DataConfig,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.config, self.batch_size, self.seed, self.ranks = config, batch_size, seed, ranks
        self.device = torch.device(device)
        self.class_names: Names = dataset.trained_names
        self._splits: dict[str, Kind] = {}
        self.identity: dict[str, object] = {"name": config.name, "train_on": config.train_on}

    @property
    def rows_in_all(self) -> Mapping[str, int]:
        """Number of rows of each complete split."""
        return self.dataset.rows

    def samples_in_all(self, split: str) -> int:
        """Return the number of samples of a complete split."""
        return self.rows_in_all[split]

    @property
    def limit(self) -> Limit:
        """Limit on the rows of each split."""
        return Limit(self.config.limit, self.config.split_seed)

    @property
    def objective(self) -> Objective:
        """Objective of the task."""
        return CLASSIFICATION

    def labelled_texts(self) -> "tuple[RawTexts, RawTexts] | None":
        """Return training and test texts with their classes; None where there are none."""
        return None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes of a prediction."""

    @abstractmethod
    def load(self, split: str) -> Kind:
        """Load a whole split."""

    @abstractmethod
    def check(self, split: str) -> None:
        """Raise UserError if `load` would refuse a label of a split that is available offline."""

    @abstractmethod
    def training_loader(self, samples: Kind) -> BatchLoader:
        """Return a loader of shuffled, augmented batches."""

    @abstractmethod
    def plain_loader(self, samples: Kind, batch_size: int) -> BatchLoader:
        """Return a loader of all samples, unshuffled and unaugmented."""

    def arranged(self, rows: Kind) -> Kind:
        """Return the samples that are made of the `rows` of a split."""
        return rows

    def save(self, folder: Path) -> None:
        """Write to a run directory what its model needs in order to read this data."""
        if self.class_names is not None:
            write_json(folder / CLASSES, list(self.class_names))

    def changed_files(self, folder: Path, then: Mapping[str, Any]) -> list[str]:
        """Return the files of `save` that no longer match `then`, the data entry of the manifest.

        Where the manifest records no hash, existing class names must equal those of the data found
        now.
        """
        expected = then.get(CLASSES_HASH)
        if expected is None:
            if self.class_names is None or not (folder / CLASSES).exists():
                return []
            expected = names_hash(self.class_names)
        try:
            kept_names(folder, expected)
        except UserError:
            return [CLASSES]
        return []

    def setup(self, stage: str | None = None) -> None:
        """Load the training split and split off the validation rows; a second call does nothing.

        Labels of the test split are checked here too, so that errors show before training and not
        after.
        """
        if "train" in self._splits:
            return
        rows = self.load("train")
        self.check("test")
        train_rows, val_rows = self._carved(rows)
        part = rows.take(train_rows)
        whole = self.config.train_on == "train+val"
        validation = rows.take(val_rows) if len(val_rows) else self.load("validation")
        self._splits["val"] = self.arranged(validation)
        self._splits["unaugmented_train"] = self.arranged(part)
        self._splits["train"] = self.arranged(rows) if whole else self._splits["unaugmented_train"]
        self.identity |= {
            "source": rows.source,
            "train_sha256": rows.fingerprint(),
            "train_rows": rows.rows if whole else len(train_rows),
            "train_split_rows": rows.rows,
            "train_split_rows_in_all": self.rows_in_all["train"],
            "val_rows": validation.rows,
            "val_rows_sha256": hashlib.sha256(val_rows.astype(np.int64).tobytes()).hexdigest(),
        }
        if self.class_names is not None:
            self.identity[CLASSES_HASH] = names_hash(self.class_names)

    def content_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the current training rows and of the choice of validation rows.

        The keys are those of the manifest of a run trained on them. Loads the rows; decoded images
        and token ids of unchanged files come from the cache. Raises DataNotFound if no source has
        the data.
        """
        self.setup()
        return {key: str(self.identity[key]) for key in ("train_sha256", "val_rows_sha256")}

    def train_dataloader(self) -> BatchLoader:
        train, held_back = self._splits["train"], self._splits["val"].rows
        carves = self.config.val_fraction is not None and self.config.train_on == "train"
        if carves and train.rows < self.batch_size <= train.rows + held_back:
            raise UserError(
                f"data.val_fraction={self.config.val_fraction} leaves {train.rows} "
                f"{self.sample_name} to train on, fewer than recipe.batch_size={self.batch_size}; "
                "choose a smaller fraction or a smaller batch"
            )
        return self.training_loader(train)

    def warn_of_few_samples(self) -> None:
        """Warn if a batch takes more samples than there are to train on, so that none is full.

        Raises UserError if the validation rows held back make the difference.
        """
        rows = self.train_dataloader().num_samples
        if rows < self.batch_size:
            warn(
                f"recipe.batch_size={self.batch_size} is more than the {rows} training "
                f"{self.sample_name}, so no batch has more than {rows}; for several updates an "
                f"epoch choose a smaller one, such as recipe.batch_size={max(rows // 8, 1)}"
            )

    def val_dataloader(self) -> BatchLoader:
        return self.plain_loader(self._splits["val"], self.batch_size)

    def few_dataloaders(self, samples: int, batch_size: int) -> tuple[BatchLoader, BatchLoader]:
        """Return loaders of at most `samples` samples: of training, as in training, and plain ones.

        The latter are of the validation split.
        """
        picked = [
            rows.take(np.sort(np.random.default_rng(0).permutation(rows.rows)[:samples]))
            for rows in (self._splits["train"], self._splits["val"])
        ]
        training = self.training_loader(picked[0])
        training.batch_size = batch_size
        return training, self.plain_loader(picked[1], batch_size)

    def test_dataloader(self, max_rows: int | None = None) -> BatchLoader:
        """Return a loader of the test split, or of its first `max_rows` samples."""
        rows = self.load("test")
        samples = self.arranged(rows)
        complete = rows.rows == self.rows_in_all["test"]
        self.identity |= {
            "test_sha256": rows.fingerprint(),
            "test_rows": min(samples.rows, max_rows or samples.rows),
            "test_rows_in_all": samples.rows if complete else self.samples_in_all("test"),
        }
        loader = self.plain_loader(samples, self.batch_size)
        return loader if max_rows is None else loader.first(max_rows)

    @property
    def calibration_samples(self) -> int:
        """Number of the samples that `calibration_dataloaders` divides."""
        return self._splits["unaugmented_train"].rows

    def calibration_dataloaders(
        self, *, samples: int, holdout: int, batch_size: int, seed: int
    ) -> tuple[BatchLoader, BatchLoader]:
        """Return loaders of at most `samples` training samples to fit on and of `holdout` others.

        The samples are unaugmented, drawn with `seed`, and contain no validation rows. Raises
        UserError if none is left to fit on.
        """
        train = self._splits["unaugmented_train"]
        if holdout >= train.rows:
            raise UserError(
                f"calibration.holdout={holdout} leaves nothing to fit on: {self.config.name} has "
                f"{train.rows} training {self.sample_name}; choose fewer, for example "
                f"calibration.holdout={max(train.rows // 4, 1)}"
            )
        if holdout > train.rows // 2:
            warn(
                f"calibration.holdout={holdout} of {train.rows} training {self.sample_name} leaves "
                f"only {train.rows - holdout} to fit on; consider calibration.holdout="
                f"{train.rows // 4}"
            )
        order = np.random.default_rng(seed).permutation(train.rows)
        parts = order[holdout : holdout + samples], order[:holdout]
        fit, held_out = (self.plain_loader(train.take(np.sort(p)), batch_size) for p in parts)
        return fit, held_out

    def _carved(self, rows: Kind) -> tuple[np.ndarray, np.ndarray]:
        """Return the training and validation rows of the training split, in their stored order."""
        fraction = self.config.val_fraction
        if fraction is None:
            if "validation" not in self.rows_in_all:
                raise UserError(
                    f"data.val_fraction=null, but {self.config.name} has no validation split of "
                    "its own; choose a fraction such as 0.1"
                )
            return np.arange(rows.rows), np.arange(0)
        if "validation" in self.rows_in_all:
            raise UserError(
                f"data.val_fraction={fraction}, but {self.config.name} has a validation split of "
                "its own; set data.val_fraction=null"
            )
        return carved(
            rows.labels.cpu().numpy(),
            fraction,
            seed=self.config.split_seed,
            sample_name=self.sample_name,
            limit=self.config.limit if rows.rows < self.rows_in_all["train"] else None,
        )
