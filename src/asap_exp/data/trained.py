"""What a run directory says of the data: the names of the classes, and what was recorded."""

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
"""What the classes are called, in the order of the model's outputs."""
CLASSES_HASH = "classes_sha256"
TOKENIZER_HASH = "tokenizer_sha256"

Catalogued = TypeVar("Catalogued", bound=Dataset)


def as_trained(dataset: Catalogued, folder: Path | None) -> Catalogued:
    """`dataset`, its classes in the order of the model of the run directory `folder`."""
    if folder is None:
        return dataset
    expected = recorded(folder, CLASSES_HASH)
    if expected is None and not (folder / CLASSES).is_file():
        return dataset
    return replace(dataset, trained_names=kept_names(folder, expected))


def kept_names(folder: Path, expected: str | None) -> tuple[str, ...]:
    """The class names in a run directory; UserError where their hash is not `expected`.

    Manifests of earlier versions hold no hash of them.
    """
    file = folder / CLASSES
    if not file.is_file():
        raise UserError(
            f"{file} is missing, which says what the model's classes are called; {repair(folder)}"
        )
    try:
        names = read_json(file)
    except UserError as error:
        raise UserError(f"{error}; {repair(folder)}") from error
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not listed or not names or len(set(names)) < len(names):
        raise UserError(f"{file} is damaged: it is no list of class names; {repair(folder)}")
    if expected is not None and names_hash(names) != expected:
        raise UserError(
            f"{file} was changed: it no longer holds the class names that the run was trained "
            f"with, in their order; {repair(folder)}"
        )
    return tuple(names)


def names_hash(names: Sequence[str]) -> str:
    """SHA-256 of the names and their order."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def recorded(folder: Path, key: str) -> str | None:
    """What the manifest of a run directory says of its data; None where it says nothing."""
    run = Run(folder)
    return run.manifest.data.get(key) if run.started else None


def repair(folder: Path) -> str:
    """How a file is made again that a training wrote into its run directory."""
    run = Run(folder)
    if not run.started:
        return f"the command that trained the run of {folder} writes it again"
    return f"it is written again by: {run.manifest.command}"
