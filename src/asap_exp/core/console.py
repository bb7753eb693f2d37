"""Console output: warnings, tables, and progress bars on a terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")

PLAIN_WIDTH = 120
"""Columns of output that goes to a file."""


LINE_SECONDS = 5
"""Seconds between two lines of progress in output that goes to a file."""


def warn(text: str) -> None:
    """Print a warning on stderr, about anything done differently from what was asked."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def console() -> Console:
    """Return a console as wide as the terminal, or of fixed width if output goes to a file."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def progress(
    items: Iterable[Item],
    description: str,
    total: int,
    *,
    size: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Yield the items, with a progress bar if the output is a terminal.

    With `size`, how much of `total` an item is, output that goes to a file has a line every
    `LINE_SECONDS`.
    """
    done, last, terminal = 0, time.monotonic(), Console().is_terminal
    with Progress(transient=True, disable=not terminal) as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            done += 1 if size is None else size(item)
            bar.update(task, completed=done)
            if size is not None and not terminal and time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                print(f"{description}: {done:,} of {total:,}", flush=True)
