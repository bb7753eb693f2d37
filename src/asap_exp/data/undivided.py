"""Test rows of sources that have a training split alone, held out by a rule of the catalogue."""

import math

import numpy as np

from asap_exp.core.errors import UserError
from asap_exp.data.carving import carved
from asap_exp.data.catalog import Dataset, ImageDataset

SEED = 0
"""Seed of the draw, which no setting changes: every model leaves the same rows out."""


def divides(dataset: Dataset) -> bool:
    """Return True if the catalogue says how an undivided source of this data set is split."""
    return isinstance(dataset, ImageDataset) and dataset.test_fraction is not None


def rows_of(dataset: ImageDataset, split: str, labels: np.ndarray) -> np.ndarray:
    """Return the rows of `split`, ascending, of an undivided source with these `labels`.

    The share `dataset.test_fraction` of every class is the test split, drawn with `SEED` from the
    stored order. Raises UserError where a part would lack a class.
    """
    assert dataset.test_fraction is not None
    train, test = carved(
        labels,
        dataset.test_fraction,
        seed=SEED,
        sample_name="images",
        key=f"the test share of {dataset.name}",
        part="test",
    )
    return {"train": train, "test": test}[split]


def rows_in_all(dataset: ImageDataset, rows: int) -> dict[str, int]:
    """Return the rows of each complete split, for an undivided source that has `rows`.

    A source of another size than the known ones is measured by the complete data set, so that
    tables call it a subset.
    """
    assert dataset.test_fraction is not None
    complete = rows if rows in dataset.undivided else sum(dataset.rows.values())
    test = math.ceil(dataset.test_fraction * complete)  # as scikit-learn rounds
    return {"train": complete - test, "test": test}


def source_words(dataset: ImageDataset, source: str) -> str:
    """Add to the description of an undivided source how it is split, for the record."""
    assert dataset.test_fraction is not None
    return f"{source}; {dataset.test_fraction:.0%} of each class is the test split, seed {SEED}"


def check_has_training(dataset: Dataset, has_training: bool, folder: str) -> None:
    """Raise UserError for a test split without its training split.

    The training rows would come from another source, which may hold the same images.
    """
    if not has_training:
        raise UserError(
            f"{folder} has a test split of {dataset.name} and no training split, and other sources "
            "have no such test split: their training images may be among these. Put the training "
            "split there too, or take the test split away"
        )
