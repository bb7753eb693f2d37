"""Files of which a damaged one must not stand in the way of the others."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from asap_exp.core.console import warn
from asap_exp.core.errors import UserError

T = TypeVar("T")


def readable(files: Iterable[Path], read: Callable[[Path], T], *, strict: bool) -> list[T]:
    """What `read` makes of the files; one that it refuses is left out, and named on stderr.

    Where the caller is `strict`, the UserError goes on.
    """
    found = []
    for file in files:
        try:
            found.append(read(file))
        except UserError as error:
            if strict:
                raise
            warn(f"left out: {error}")
    return found
