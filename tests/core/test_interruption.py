"""Signals raise Interrupted at once, or once the current work is saved."""

import os
import signal
from pathlib import Path

import pytest

from asap_exp.core.files import read_json, write_json
from asap_exp.core.interruption import Interrupted, interruptible, postponed
from asap_exp.core.manifest import manifest


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_raises_what_a_shell_would_say(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop, interruptible():
        send(number)
    assert stop.value.exit_status == 128 + number
    assert number.name in str(stop.value)
    assert signal.getsignal(number) is before


def test_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's background job ignores Ctrl-C in the foreground, and must keep ignoring it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            send(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


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
