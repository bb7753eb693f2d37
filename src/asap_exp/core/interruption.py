"""SIGINT and SIGTERM: what they raise, and how a stage puts them off until its work is saved."""

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

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: a second signal is not put off."""
        if self.signal is not None:
            _interrupt(number, frame)
        self.signal = number
        name = signal.Signals(number).name
        print(f"\n{name}: stopping once this step is saved", file=sys.stderr, flush=True)

    def listen(self) -> None:
        """Puts its handler in the place of one that came after it."""
        hear(self.note)


@contextmanager
def interruptible(pass_on: Callable[[int], bool] = lambda _: False) -> Iterator[Request]:
    """Both signals raise Interrupted; the Request knows of one even if a library swallowed it.

    Where `pass_on` has handed the first signal to others, who end by it, this process waits.
    """
    request = Request()

    def interrupt(number: int, frame: FrameType | None) -> None:
        first, request.signal = request.signal is None, number
        if not (first and pass_on(number)):
            _interrupt(number, frame)

    with handled(interrupt):
        yield request


@contextmanager
def postponed() -> Iterator[Request]:
    """The first signal is noted in the Request; a second one raises Interrupted at once."""
    request = Request()
    with handled(request.note):
        yield request


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """`handler` gets both signals meanwhile."""
    before = hear(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def hear(handler: Handler) -> dict[signal.Signals, Any]:
    """`handler` gets both signals; what got them before.

    One that this process was told to ignore stays ignored. Python handles signals in its main
    thread alone; elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    return heard
