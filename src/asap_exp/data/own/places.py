"""Files of own data: what a path holds, and which of its files belong to which split."""

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from asap_exp.core.console import warn
from asap_exp.core.errors import DataNotFound, UserError
from asap_exp.core.locations import data_root

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Words in the names of files and folders that tell a split, as the hub reads them."""

SUFFIXES = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON lines",
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
COMPRESSED = (".gz", ".bz2", ".zst")
FORMATS = {"images": ("Parquet",), "texts": ("Parquet", "CSV", "JSON lines")}
"""Formats of files by kind of data."""
FOLDER = "image folder"
HUB = "Hugging Face hub"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

LAYOUT = (
    "an image folder has one folder of images per class, or folders called train, val and test "
    "that have them"
)


@dataclass(frozen=True)
class Place:
    """Own data at a path: its format, and the files, or the folder, of each split.

    `path` is where it was found, absolute unless it is a name on the hub, whose data has no files
    here.
    """

    path: str
    format: str
    splits: dict[str, tuple[Path, ...]]


def locate(path: str, root: str | None, kind: str) -> Place:
    """Return the own data of `kind`, images or texts, at `path`.

    A relative path starts in the working directory, else below `data.root`; there, data that has
    moved is found under its own name. Raises DataNotFound if nothing is there, and UserError if it
    cannot be read as data.
    """
    candidates = [Path(path).expanduser()]
    if (folder := data_root(root)) is not None:
        candidates += [Path(folder) / path, Path(folder) / Path(path).name]
    for candidate in candidates:
        where = str(candidate.absolute())
        if candidate.is_dir():
            return of_folder(candidate, where, kind)
        if candidate.is_file():
            return of_files([candidate], where, kind)
        if glob.has_magic(where) and (found := sorted(glob.glob(where))):
            return of_files(map(Path, found), where, kind)
    if REPOSITORY.fullmatch(path):
        return Place(path, HUB, {})
    looked = " and ".join(str(each.absolute()) for each in dict.fromkeys(candidates))
    raise DataNotFound(
        f"data.path={path}: there is no such file or folder ({looked}). Give the place where the "
        "data is now with data.path=PLACE, or data.root=FOLDER for the folder that holds it"
    )


def of_files(files: Iterable[Path], path: str, kind: str) -> Place:
    """Return the place of these data files, grouped by the splits in their names."""
    files = list(files)
    return Place(path, one_format(files, path, kind), by_split(files, path))


def one_format(files: Sequence[Path], path: str, kind: str) -> str:
    """Return the format of data files; raise UserError unless all have the same, fit for `kind`."""
    there = sorted({format_of(file) or f"*{file.suffix}" for file in files})
    allowed = FORMATS[kind]
    if len(there) == 1 and there[0] in allowed:
        return there[0]
    more = f"; {LAYOUT}" if kind == "images" else ""
    raise UserError(
        f"data.path={path} has files of the kind {' and '.join(there)}; give {kind} as files of "
        f"one kind, {' or '.join(allowed)}{more}"
    )


def of_folder(folder: Path, path: str, kind: str) -> Place:
    """Return the place of the data in a folder.

    It has data files, by itself or in `data` as on the hub; folders named after splits; or images.
    """
    for place in (folder, folder / "data"):
        if files := data_files(place, kind):
            return of_files(files, path, kind)
    below = subfolders(folder)
    if splits := split_folders(below, path, kind):
        inside = {split: tuple(data_files(each, kind)) for split, each in splits.items()}
        if all(inside.values()):
            return Place(path, one_format([*chain(*inside.values())], path, kind), inside)
        if kind == "images":
            return Place(path, FOLDER, {split: (each,) for split, each in splits.items()})
    if kind == "images" and below:
        return Place(path, FOLDER, {"train": (folder,)})
    formats = f"no {' or '.join(FORMATS[kind])} file"
    if kind == "texts":
        raise UserError(f"data.path={path} has {formats}")
    has = "images, but no folder per class" if flat(folder) else f"no image and {formats}"
    raise UserError(f"data.path={path} has {has}; {LAYOUT}")


def by_split(files: Sequence[Path], path: str) -> dict[str, tuple[Path, ...]]:
    """Group files by the split that their names tell; without any, all are training files."""
    told = {file: split_of(file.name) for file in files}
    if not any(told.values()):
        return {"train": tuple(files)}
    if unknown := [file for file, split in told.items() if split is None]:
        raise UserError(
            f"data.path={path}: it cannot be told which split {unknown[0]} belongs to. Rename it, "
            "so that its name has one of the words train, validation and test, or give a glob "
            "that leaves it out, for example data.path=FOLDER/*-of-*.parquet"
        )
    splits = {
        split: tuple(file for file in files if told[file] == split)
        for split in SPLIT_WORDS
        if split in told.values()
    }
    if "train" not in splits:
        return {"train": tuple(files)} if len(files) == 1 else no_training(path, splits)
    return splits


def no_training(path: str, splits: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """Raise UserError for data that has other splits but none to train on."""
    raise UserError(
        f"data.path={path} has the splits {', '.join(splits)}, but none to train on: the name of "
        "a file or folder must have the word train"
    )


def split_of(name: str, *, whole: bool = False) -> str | None:
    """Return the split that the words of a name tell; with `whole`, the name must be that word.

    Returns None if it tells none, or more than one.
    """
    words = [name.lower()] if whole else re.split(r"[^a-z]+", name.lower())
    told = {split for split, known in SPLIT_WORDS.items() if set(words) & set(known)}
    return told.pop() if len(told) == 1 else None


def split_folders(folders: Sequence[Path], path: str, kind: str) -> dict[str, Path]:
    """Return the folders that are named after splits; none if their names are those of classes.

    A class may be called train, but its folder has images, whereas a split has folders or files of
    data. Raises UserError if two folders are the same split.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        split = split_of(folder.name, whole=True)
        if split is not None and split in named:
            raise UserError(
                f"data.path={path}: {named[split]} and {folder} are both the split {split}; keep "
                "one of them"
            )
        if split is not None:
            named[split] = folder
    train = named.get("train")
    if train is None or not (data_files(train, kind) or (subfolders(train) and not flat(train))):
        return {}
    if others := [folder.name for folder in folders if folder not in named.values()]:
        warn(f"{', '.join(others)} in {path} is left out: its name is not that of a split")
    return named


def flat(folder: Path) -> bool:
    """Return True if a folder has images itself."""
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def data_files(folder: Path, kind: str) -> list[Path]:
    """Return the files of a folder that may hold data of this kind, by name."""
    if not folder.is_dir():
        return []
    files = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    return [file for file in files if file.is_file() and format_of(file) in FORMATS[kind]]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders below `folder` that are not hidden, by name."""
    return sorted(each for each in folder.iterdir() if each.is_dir() and each.name[0] != ".")


def format_of(file: Path) -> str | None:
    """Return the format that a file's name tells, or None."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def name_of(path: str) -> str:
    """Return the name of own data at `path`: that of its folder, file or repository.

    A file that is named after its split, or a glob, has the name of its folder.
    """
    parts = [part for part in Path(path).absolute().parts if not glob.has_magic(part)]
    last = parts[-1] if parts else "data"
    stem = last
    while Path(stem).suffix.lower() in (*SUFFIXES, *COMPRESSED):
        stem = Path(stem).stem
    if stem != last and split_of(stem) and len(parts) > 1:
        stem = parts[-2]
    plain = re.sub(r"[^\w.-]+", "_", stem).strip("._-")
    return plain or "data"
