"""SIGINT and SIGTERM: what they raise, and how a stage puts them off until it has saved its work."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(BaseException):
    """A signal asked this process to stop. No Exception: whoever goes on after errors stops too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}"

    @property
    def exit_status(self) -> int:
        """As shells give it."""
        return 128 + self.signal


class Request:
    """Whether a signal has come that was put off."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def obey(self) -> None:
        """Raises Interrupted if one has."""
        if self.signal is not None:
            raise Interrupted(self.signal)


@contextmanager
def interruptible() -> Iterator[None]:
    """Both signals raise Interrupted."""
    with handled(_interrupt):
        yield


@contextmanager
def postponed() -> Iterator[Request]:
    """The first signal is noted in the Request; a second one raises Interrupted at once."""
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            _interrupt(number, frame)
        request.signal = number
        name = signal.Signals(number).name
        print(f"\n{name}: stopping once this step is saved", file=sys.stderr, flush=True)

    with handled(note):
        yield request


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """`handler` gets both signals; one that this process was told to ignore stays ignored.

    Python handles signals in its main thread alone; elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    heard = [s for s, current in before.items() if current is not signal.SIG_IGN]
    try:
        for s in heard:
            signal.signal(s, handler)
        yield
    finally:
        for s in heard:
            signal.signal(s, before[s])
