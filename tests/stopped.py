"""Work that is stopped and started again: how it is stopped, and how its record is compared."""

import os
import signal
from collections.abc import Set
from typing import Any

CLEAN = {"commit": "a" * 40, "dirty": False}
"""Code of a commit, of which parts are kept."""

ATTEMPT = {"started", "ended", "wall_seconds", "earlier_attempts", "sha256"}
"""Keys of a manifest in which two attempts at the same work differ."""


def terminate(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def without(keys: Set[str], tree: Any) -> Any:
    """The record without what stands below these keys."""
    if isinstance(tree, dict):
        return {key: without(keys, x) for key, x in tree.items() if key not in keys}
    return [without(keys, item) for item in tree] if isinstance(tree, list) else tree
