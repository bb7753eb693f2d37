"""What stages show: progress on a terminal, nothing where output goes to a file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")

PLAIN_WIDTH = 120


def warn(text: str) -> None:
    """Says on stderr what was done otherwise than asked."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def console() -> Console:
    """As wide as the terminal; a fixed width where output goes to a file."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def progress(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    if Console().is_terminal:
        items = track(items, description, total=total, transient=True)
    yield from items
