"""The log file of a stage: everything printed, warnings, debug output, and how it ended.

Each line has a time in UTC and a level; an unexpected error is there with its traceback.
"""

import logging
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from asap_exp.core.command_line import command
from asap_exp.core.console import LOGGER, debug, warn
from asap_exp.core.failures import explained
from asap_exp.core.interruption import Interrupted

FILE = "run.log"


class Utc(logging.Formatter):
    """Format of a line: time in UTC with milliseconds, level, text."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class RunLog(logging.Handler):
    """Handler that keeps what is logged until the folder of the run is known, then writes it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(Utc("%(asctime)s %(levelname)s %(message)s"))
        self.kept: list[str] = []
        self.file: TextIO | None = None
        self.lost = False

    def emit(self, record: logging.LogRecord) -> None:
        self.write(f"{self.format(record)}\n")

    def write(self, text: str) -> None:
        if self.file is None:
            if not self.lost:
                self.kept.append(text)
            return
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            self.lose(error)

    def open(self, folder: Path) -> None:
        """Append to the file in `folder` from now on; a log that cannot be written is left out."""
        self.close_file()
        try:
            self.file = (folder / FILE).open("a", encoding="utf-8")
        except OSError as error:
            self.lose(error)
        kept, self.kept = self.kept, []
        self.write("".join(kept))

    def lose(self, error: OSError) -> None:
        """Go on without a file."""
        self.close_file()
        if not self.lost:
            self.lost = True
            warn(f"{FILE} could not be written: {error}")

    def close_file(self) -> None:
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
            self.file = None

    def ended_by(self, error: BaseException, stage: str) -> None:
        """Write how the stage ended: a sentence, or the traceback of a fault in the code."""
        sentence = explained(error, stage) if isinstance(error, Exception) else None
        if sentence is None and not isinstance(error, Interrupted):
            text = "".join(traceback.format_exception(error)).rstrip()
        else:
            text = str(sentence or error)
        self.add(logging.ERROR, text)

    def add(self, level: int, text: str) -> None:
        """Write a line that is printed elsewhere."""
        self.handle(LOGGER.makeRecord(LOGGER.name, level, "", 0, text, (), None))


_current: RunLog | None = None


@contextmanager
def run_log(stage: str) -> Iterator[None]:
    """Keep a log of a stage, in the folder that `log_into` names meanwhile.

    A stage within another one writes into the log of that one.
    """
    global _current
    if _current is not None:
        yield
        return
    _current = log = RunLog()
    LOGGER.addHandler(log)
    debug(f"command: {command()}")
    try:
        with warnings_in(log):
            yield
    except BaseException as error:
        log.ended_by(error, stage)
        raise
    finally:
        _current = None
        LOGGER.removeHandler(log)
        log.close_file()


def log_into(folder: Path) -> None:
    """Put the log of the stage that is running into `folder`, which must exist."""
    if _current is not None:
        _current.open(folder)


@contextmanager
def warnings_in(log: RunLog) -> Iterator[None]:
    """Write Python's warnings into the log too; they are shown as before."""
    show = warnings.showwarning

    def logged(message: Any, category: Any, filename: str, lineno: int, *more: Any) -> None:
        show(message, category, filename, lineno, *more)
        log.add(logging.WARNING, f"{filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = logged  # type: ignore[assignment]
    try:
        yield
    finally:
        if warnings.showwarning is logged:
            warnings.showwarning = show
