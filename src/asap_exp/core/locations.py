"""Locations on this machine: home directories, the cache, the data sets."""

import os
from pathlib import Path

from asap_exp.core.errors import UserError


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
