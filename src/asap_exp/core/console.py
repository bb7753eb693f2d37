"""Console output: warnings, tables, and progress bars on a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

Item = TypeVar("Item")

PLAIN_WIDTH = 140
"""Columns of output that goes to a file."""


def warn(text: str) -> None:
    """Print a warning on stderr, about anything done differently from what was asked."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def console() -> Console:
    """Return a console as wide as the terminal, or of fixed width if output goes to a file."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def plain_table(title: str, caption: str | None = None) -> Table:
    """Return a table without lines between its columns; both texts are rich markup."""
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )


def progress(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield the items, with a progress bar if the output is a terminal."""
    if Console().is_terminal:
        items = track(items, description, total=total, transient=True)
    yield from items
