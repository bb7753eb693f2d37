"""Signals that stop a stage: what they raise, and how it postpones them until its work is saved.

They are SIGINT, SIGTERM and the SIGHUP of a closed terminal, and in a job of submitit the one that
returns it to the queue.
"""

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def requeueing() -> signal.Signals | None:
    """Return the signal by which submitit stops a job whose time is up or whose place is needed."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


Handler = Callable[[int, FrameType | None], Any]


class Interrupted(BaseException):
    """Raised when a signal asks this process to stop.

    Not an Exception, so that code that continues after errors stops too. `saved` is the checkpoint
    that was written and holds the work, if there is one.
    """

    def __init__(self, number: int, saved: Path | None = None) -> None:
        super().__init__(number)
        self.signal, self.saved = signal.Signals(number), saved

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}"

    @property
    def exit_status(self) -> int:
        """Exit status in the convention of shells: 128 + signal."""
        return 128 + self.signal


class Request:
    """Record of a postponed signal, which a `quiet` one does not announce."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.signal: int | None = None
        self.saved: Path | None = None
        """The checkpoint, once the work that the signal may end is in it."""
        self.quiet = quiet

    def obey(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.signal is not None:
            raise Interrupted(self.signal, self.saved)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: postpone the first, raise Interrupted at the second."""
        if hung_up_again(number, self.signal):
            return
        if self.signal is not None:
            raise Interrupted(number, self.saved)
        self.signal = number
        if self.quiet:
            return
        name = signal.Signals(number).name
        words = "stopping once this step is saved; a second one stops at once"
        print(f"\n{name}: {words}", file=sys.stderr, flush=True)

    def listen(self) -> None:
        """Replace a handler that was installed later."""
        hear(self.note)


@contextmanager
def interruptible(pass_on: Callable[[int], bool] = lambda _: False) -> Iterator[Request]:
    """Make these signals raise Interrupted; the Request records them even if a library swallows it.

    If `pass_on` hands the first signal to other processes, which end because of it, this process
    waits for them.
    """
    request = Request()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if hung_up_again(number, request.signal):
            return
        first, request.signal = request.signal is None, number
        if not (first and pass_on(number)):
            _interrupt(number, frame)

    with handled(interrupt):
        yield request


@contextmanager
def postponed(*, quiet: bool = False) -> Iterator[Request]:
    """Note the first signal in the Request; a second one raises Interrupted at once."""
    request = Request(quiet=quiet)
    with handled(request.note):
        yield request


def hung_up_again(number: int, before: int | None) -> bool:
    """Return True for a SIGHUP after one that was handled: shell and kernel send one each.

    What would go to a terminal that is gone, where writing fails, goes nowhere from now on.
    """
    if number != signal.SIGHUP:
        return False
    for stream in (1, 2):
        with suppress(OSError):  # it is closed already
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
    return before == signal.SIGHUP


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Install `handler` for these signals while the context is open."""
    before = hear(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def hear(handler: Handler) -> dict[signal.Signals, Any]:
    """Install `handler` for these signals and return the previous handlers.

    A signal that this process was told to ignore stays ignored. Python handles signals only in its
    main thread; in other threads this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    queue = requeueing()
    numbers = SIGNALS if queue is None else (*SIGNALS, queue)
    before = {number: signal.getsignal(number) for number in numbers}
    heard = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    return heard
