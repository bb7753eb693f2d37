"""Where things lie on this machine: home directories, the cache, the data sets."""

import os
from pathlib import Path

from asap_exp.core.errors import UserError


def expanded(key: str, path: str) -> str:
    """`path` with a home directory in place of ~; UserError where that is not known."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path.split("/")[0]
        raise UserError(
            f"{key}={path}: the home directory {user} is not known; give the whole path, or "
            f"./{path} for a folder of that name here"
        )
    return found


def data_root(root: str | None) -> str | None:
    """The folder of data sets: `root`, else $ASAP_EXP_DATA."""
    if root:
        return expanded("data.root", root)
    chosen = os.environ.get("ASAP_EXP_DATA")
    return expanded("ASAP_EXP_DATA", chosen) if chosen else None


def cache_dir(cache: str | None) -> Path:
    """Where downloads go: `cache`, else $ASAP_EXP_CACHE, else ~/.cache/asap_exp."""
    if cache:
        return Path(expanded("data.cache", cache))
    if chosen := os.environ.get("ASAP_EXP_CACHE"):
        return Path(expanded("ASAP_EXP_CACHE", chosen))
    try:
        return Path.home() / ".cache" / "asap_exp"
    except RuntimeError as error:
        raise UserError(
            "there is no place for the cache of data sets: this user has no home directory; give "
            "one with data.cache=FOLDER or ASAP_EXP_CACHE=FOLDER"
        ) from error
