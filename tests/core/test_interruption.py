"""Signals raise Interrupted at once, or once the current work is saved."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asap_exp.core.files import read_json, write_json
from asap_exp.core.interruption import Interrupted, interruptible, postponed
from asap_exp.core.manifest import manifest


@pytest.fixture(autouse=True)
def _hang_ups_are_heard() -> Iterator[None]:
    """Also where the tests run below nohup, which has them ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_raises_what_a_shell_would_say(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop, interruptible():
        send(number)
    assert stop.value.exit_status == 128 + number
    assert number.name in str(stop.value)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    """A shell's background job ignores Ctrl-C in the foreground, and one of nohup a hang-up."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible():
            send(number)
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_second_hang_up_is_the_first_once_more() -> None:
    """The kernel sends one, and the shell another."""
    with postponed() as stop:
        send(signal.SIGHUP)
        send(signal.SIGHUP)
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
    assert stop.signal == signal.SIGHUP
    passed: list[int] = []
    with interruptible(lambda number: not passed.append(number)):
        send(signal.SIGHUP)
        send(signal.SIGHUP)
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
    assert passed == [signal.SIGHUP]


IN_A_TERMINAL = """
import fcntl, sys, termios, time
from pathlib import Path
from asap_exp.core.console import fail, say
from asap_exp.core.interruption import postponed
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with postponed() as stop:
    say("ready")
    while stop.signal is None:
        time.sleep(0.01)
    say("saving")
    fail("saved")
Path(sys.argv[1]).write_text(str(stop.signal))
"""


def test_work_is_saved_when_its_terminal_is_closed(tmp_path: Path) -> None:
    """Writing to a terminal that is gone fails; the words of a stage that saves go nowhere."""
    keyboard, terminal = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, str(tmp_path / "saved")],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        try:
            assert b"ready" in os.read(keyboard, 1000)
        finally:
            os.close(keyboard)
        assert process.wait(60) == 0
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGHUP))


def test_interrupted_is_not_caught_with_errors() -> None:
    assert not issubclass(Interrupted, Exception)


def test_first_signal_is_put_off_and_the_second_is_not() -> None:
    with interruptible():
        with postponed() as stop:
            stop.obey()
            send(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
            with pytest.raises(Interrupted):
                send(signal.SIGINT)
            with pytest.raises(Interrupted):
                stop.obey()
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)


def test_manifest_of_interrupted_work_says_so(tmp_path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(Interrupted), interruptible(), manifest(path):
        send(signal.SIGTERM)
    after = read_json(path)
    assert after["status"] == "interrupted"
    assert after["error"] == "stopped by SIGTERM"


@pytest.mark.parametrize("write", ["first", "last"])
def test_signal_while_the_manifest_is_written_is_not_lost(tmp_path, monkeypatch, write) -> None:
    path = tmp_path / "manifest.json"
    writes: list[dict] = []

    def signalled(file: Path, value: dict) -> None:
        if len(writes) == ("first", "last").index(write):
            send(signal.SIGTERM)
        writes.append(value)
        write_json(file, value)

    monkeypatch.setattr("asap_exp.core.manifest.write_sealed", signalled)
    with pytest.raises(Interrupted), interruptible(), manifest(path):
        pass
    assert read_json(path)["status"] == ("interrupted" if write == "first" else "finished")
