"""Output of the library: text, warnings, tables, and progress bars on a terminal.

All text goes through the logger `asap_exp`, whose own handler prints it as it stands. Paths in it
are relative to the current folder if they are below it, and absolute otherwise: see `shown`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Item = TypeVar("Item")

PLAIN_WIDTH = 140
"""Columns of output that goes to a file."""

PREFIXES = {logging.DEBUG: "debug: ", logging.WARNING: "warning: ", logging.ERROR: "error: "}

LOGGER = logging.getLogger("asap_exp")


class Printer(logging.Handler):
    """Handler that prints text and tables on stdout, and everything else on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        table = getattr(record, "table", None)
        if table is not None:
            console().print(table)
            return
        stream = sys.stdout if record.levelno == logging.INFO else sys.stderr
        print(PREFIXES.get(record.levelno, "") + record.getMessage(), file=stream, flush=True)


PRINTER = Printer(logging.INFO)

LOGGER.addHandler(PRINTER)
LOGGER.setLevel(logging.DEBUG)
LOGGER.propagate = False  # a root logger with handlers would print everything twice


def say(text: str) -> None:
    """Print a line of text."""
    LOGGER.info(text)


def warn(text: str) -> None:
    """Print a warning on stderr, about anything done differently from what was asked."""
    LOGGER.warning(text)


def fail(text: str) -> None:
    """Print an error on stderr."""
    LOGGER.error(text)


def debug(text: str) -> None:
    """Write a line into the run's log, and print it on stderr after `print_debug`."""
    LOGGER.debug(text)


def show(table: Any) -> None:
    """Print a table of rich's."""
    LOGGER.info("%s", Plain(table), extra={"table": table})


class Plain:
    """Text of a table, drawn when it is needed."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __str__(self) -> str:
        from rich.console import Console

        drawn = io.StringIO()
        Console(file=drawn, width=PLAIN_WIDTH).print(self.table)
        return drawn.getvalue().rstrip("\n")


def print_debug() -> None:
    """Print what `debug` is given from now on."""
    PRINTER.setLevel(logging.DEBUG)


def shown(path: str | Path) -> str:
    """Return a path for the user: relative if it is below the current folder, else absolute."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    below = absolute.is_relative_to(here) and here != Path(here.anchor)
    return str(absolute.relative_to(here) if below else absolute)


def console() -> Console:
    """Return a console as wide as the terminal, or of fixed width if output goes to a file."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def plain_table(title: str, caption: str | None = None) -> Table:
    """Return a table without lines between its columns; both texts are rich markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

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
    from rich.console import Console
    from rich.progress import track

    if Console().is_terminal:
        items = track(items, description, total=total, transient=True)
    yield from items


class Prefixed(io.TextIOBase):
    """Stream that writes whole lines, each behind a prefix, to another one."""

    def __init__(self, stream: Any, prefix: str) -> None:
        self.stream, self.prefix, self.rest = stream, prefix, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        if lines:
            self.stream.write("".join(f"{self.prefix}{line}\n" for line in lines))
            self.stream.flush()
        return len(text)

    def finish(self) -> None:
        """Write a last line that has no end."""
        if self.rest:
            self.write("\n")

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix before every line that this process prints."""
    before = sys.stdout, sys.stderr
    streams = [Prefixed(stream, prefix) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.finish()
        sys.stdout, sys.stderr = before
