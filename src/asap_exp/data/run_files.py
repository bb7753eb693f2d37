"""Files and facts that a run directory keeps about its data: class names and hashes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.runs import Run
from asap_exp.data.catalog import Dataset

CLASSES = "classes.json"
"""File of the class names, in the order of the model's outputs."""
CLASSES_HASH = "classes_sha256"
TOKENIZER_HASH = "tokenizer_sha256"

Catalogued = TypeVar("Catalogued", bound=Dataset)


def as_trained(dataset: Catalogued, folder: Path | None) -> Catalogued:
    """Return `dataset` with the class names and order of the model in run directory `folder`."""
    if folder is None:
        return dataset
    expected = recorded(folder, CLASSES_HASH)
    if expected is None and not (folder / CLASSES).is_file():
        return dataset
    return replace(dataset, trained_names=kept_names(folder, expected))


def kept_names(folder: Path, expected: str | None) -> tuple[str, ...]:
    """Return the class names in a run directory; raise UserError if their hash is not `expected`.

    Manifests of earlier versions hold no hash of the names; then `expected` is None.
    """
    file = folder / CLASSES
    if not file.is_file():
        raise UserError(f"{file}, the names of the model's classes, is missing; {repair(folder)}")
    try:
        names = read_json(file)
    except UserError as error:
        raise UserError(f"{error}; {repair(folder)}") from error
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not listed or not names or len(set(names)) < len(names):
        raise UserError(f"{file} is damaged: it is not a list of class names; {repair(folder)}")
    if expected is not None and names_hash(names) != expected:
        raise UserError(
            f"{file} has changed: it no longer holds the class names that the run was trained "
            f"with, in their order; {repair(folder)}"
        )
    return tuple(names)


def names_hash(names: Sequence[str]) -> str:
    """Return the SHA-256 of the names and their order."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def recorded(folder: Path, key: str) -> str | None:
    """Return what the manifest of a run directory records under `key` of its data, or None."""
    run = Run(folder)
    return run.manifest.data.get(key) if run.started else None


def check_same_training(folder: Path, train_sha256: str) -> None:
    """Raise UserError unless the run at `folder` was trained on the rows with this hash."""
    then = recorded(folder, "train_sha256")
    if then not in (None, train_sha256):
        raise UserError(
            f"the training images found now (SHA-256 {train_sha256[:8]}...) are not those that "
            f"{folder} was trained on ({then[:8]}..., {recorded(folder, 'source')}), so the test "
            "images may be among the latter; set data.root=FOLDER to where the data of then is"
        )


def repair(folder: Path) -> str:
    """Say how to restore a file that training wrote to its run directory."""
    run = Run(folder)
    if not run.started:
        return f"the command that trained the run of {folder} writes it again"
    return f"it is written again by: {run.manifest.command}"
