"""Console output: warnings, tables, and progress bars on a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")

PLAIN_WIDTH = 120
"""Columns of output that goes to a file."""


def warn(text: str) -> None:
    """Print a warning on stderr, about anything done differently from what was asked."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def console() -> Console:
    """Return a console as wide as the terminal, or of fixed width if output goes to a file."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def progress(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield the items, with a progress bar if the output is a terminal."""
    if Console().is_terminal:
        items = track(items, description, total=total, transient=True)
    yield from items


class Progress:
    """Progress of a long computation on stderr: a line for each part, and on a terminal a bar."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown

    def line(self, text: str) -> None:
        """Print a line, unless nothing is to be shown."""
        if self.shown:
            print(text, file=sys.stderr, flush=True)

    def track(self, items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        """Yield the items, and say afterwards how long they took."""
        start = time.perf_counter()
        console = Console(stderr=True)
        if self.shown and console.is_terminal:
            items = track(items, description, total=total, transient=True, console=console)
        yield from items
        self.line(f"{description}: {time.perf_counter() - start:.1f} s")
