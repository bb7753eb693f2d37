"""Output of the library: text, warnings, tables, and progress bars on a terminal.

All text goes through the logger `asap_exp`, whose own handler prints it as it stands. Paths in it
are relative to the current folder if they are below it, and absolute otherwise: see `shown`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Item = TypeVar("Item")

PLAIN_WIDTH = 140
"""Columns of output that goes to a file."""
LINE_SECONDS = 5
"""Seconds between two lines of progress in output that goes to a file."""

PREFIXES = {logging.DEBUG: "debug: ", logging.WARNING: "warning: ", logging.ERROR: "error: "}

COLOURS = {logging.DEBUG: "\033[2m", logging.WARNING: "\033[33m", logging.ERROR: "\033[31m"}
"""Colours of the prefixes on a terminal: faint, yellow, red."""

LOGGER = logging.getLogger("asap_exp")

_name: str | None = None
"""Name of this process, if it is quiet."""


class Printer(logging.Handler):
    """Handler that prints text and tables on stdout, and everything else on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        table = getattr(record, "table", None)
        if table is not None:
            console().print(table)
            return
        usual = sys.stdout if record.levelno == logging.INFO else sys.stderr
        stream = getattr(record, "stream", usual)
        prefix = PREFIXES.get(record.levelno, "")
        if prefix and stream.isatty() and not os.environ.get("NO_COLOR"):
            prefix = f"{COLOURS[record.levelno]}{prefix}\033[0m"
        print(prefix + record.getMessage(), file=stream, flush=True)


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
    LOGGER.error(text if _name is None else f"{_name}: {text}")


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


def quiet(name: str) -> None:
    """Print nothing but errors from now on, with the name of this process: another one speaks."""
    global _name
    _name = name
    PRINTER.setLevel(logging.ERROR)


def is_quiet() -> bool:
    """Return True if another process speaks for this one."""
    return _name is not None


def print_debug() -> None:
    """Print what `debug` is given from now on, unless this process is quiet."""
    if _name is None:
        PRINTER.setLevel(logging.DEBUG)


def shown(path: str | Path) -> str:
    """Return a path for the user: relative if it is below the current folder, else absolute."""
    try:
        absolute, here = Path(os.path.abspath(path)), Path.cwd()
    except FileNotFoundError:  # the current folder was deleted
        return str(path)
    below = absolute.is_relative_to(here) and here != Path(here.anchor)
    return str(absolute.relative_to(here) if below else absolute)


def counted(count: int, noun: str, ending: str = "s") -> str:
    """Return a number of things in words: 1 job, 2 jobs."""
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def duration(seconds: float) -> str:
    """Return a time in words: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


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
    from rich.console import Console
    from rich.progress import Progress

    done, last, terminal = 0, time.monotonic(), Console().is_terminal
    with timed(description), Progress(transient=True, disable=not terminal) as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            done += 1 if size is None else size(item)
            bar.update(task, completed=done)
            if size is not None and not terminal and time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                say(f"{description}: {done:,} of {total:,}")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log, as debug output, how long something took."""
    started = time.monotonic()
    yield
    debug(f"{what}: {time.monotonic() - started:.2f} s")


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


class Progress:
    """Progress of a long computation on stderr: a line for each part, and on a terminal a bar."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown

    def line(self, text: str) -> None:
        """Print a line, unless nothing is to be shown."""
        if self.shown:
            LOGGER.info(text, extra={"stream": sys.stderr})

    def track(self, items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        """Yield the items, and say afterwards how long they took."""
        from rich.console import Console
        from rich.progress import track

        start = time.perf_counter()
        target = Console(stderr=True)
        if self.shown and target.is_terminal:
            items = track(items, description, total=total, transient=True, console=target)
        yield from items
        self.line(f"{description}: {time.perf_counter() - start:.1f} s")
