"""Locations on this machine: home directories, the cache, the data sets, folders to write to."""

import os
import tempfile
from pathlib import Path

from asap_exp.core.errors import UserError

ELSEWHERE = "choose another folder with paths.results=FOLDER, out=FOLDER or data.cache=FOLDER"
"""What to do about a file that cannot be written, where no key is known to be its own."""

written: dict[str, str] = {}
"""Folders that the stage of this process writes to, absolute, by the key that names them."""


def expanded(key: str, path: str) -> str:
    """Return `path` with ~ replaced by the home directory; raise UserError if that is unknown."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path.split("/")[0]
        raise UserError(
            f"{key}={path}: the home directory {user} is unknown; give the full path, or "
            f"./{path} for a folder of that name here"
        )
    return found


def data_root(root: str | None) -> str | None:
    """Return the folder of data sets: `root`, else $ASAP_EXP_DATA."""
    if root:
        return expanded("data.root", root)
    chosen = os.environ.get("ASAP_EXP_DATA")
    return expanded("ASAP_EXP_DATA", chosen) if chosen else None


def cache_dir(cache: str | None) -> Path:
    """Return the folder for downloads: `cache`, else $ASAP_EXP_CACHE, else ~/.cache/asap_exp."""
    if cache:
        return Path(expanded("data.cache", cache))
    if chosen := os.environ.get("ASAP_EXP_CACHE"):
        return Path(expanded("ASAP_EXP_CACHE", chosen))
    try:
        return Path.home() / ".cache" / "asap_exp"
    except RuntimeError as error:
        raise UserError(
            "there is no folder for the cache of data sets: this user has no home directory; set "
            "data.cache=FOLDER or ASAP_EXP_CACHE=FOLDER"
        ) from error


def nearest(path: str | Path) -> Path:
    """Return `path` if something is there, else the nearest of the folders above it."""
    return next(each for each in (Path(path), *Path(path).absolute().parents) if exists(each))


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # its name is too long, or it may not be looked at
        return False


def check_no_file(key: str, path: str) -> None:
    """Raise UserError if `path`, given by `key`, is a file, or is below one."""
    found = nearest(path)
    if found.is_dir():
        return
    what = "is a file" if found == Path(path) else f"cannot be made: {found} is a file"
    raise UserError(f"{key}={path} {what}; give a folder", key=key, value=path)


def check_can_be_made(key: str, path: str) -> None:
    """Raise UserError if the folder `path`, given by `key`, is missing and cannot be made."""
    check_no_file(key, path)
    found = nearest(path)
    if found == Path(path):
        return
    try:
        tempfile.TemporaryFile(dir=found).close()
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be made: nothing can be written to {found} ({error.strerror}); "
            "give another folder",
            key=key,
            value=path,
        ) from error


def elsewhere(path: str | Path) -> str:
    """Return how to have a file written to another folder than `path`, by the key of its own."""
    place = Path(path).absolute()
    keys = [key for key, folder in written.items() if place.is_relative_to(folder)]
    keys.sort(key=lambda key: len(written[key]))
    return f"choose another folder with {keys[-1]}=FOLDER" if keys else ELSEWHERE
