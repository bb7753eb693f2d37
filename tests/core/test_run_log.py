"""The log of a run: what it holds, when it begins, and how it ends."""

import logging
import re
import signal
import warnings

import pytest

from asap_exp.core.console import debug, say, warn
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted
from asap_exp.core.manifest import manifest
from asap_exp.core.run_log import FILE, log_into, run_log

LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) (.*)$")


def lines(folder):
    """Level and text of the lines that have a time, without that of the command."""
    found = map(LINE.match, (folder / FILE).read_text().splitlines())
    return [match.groups() for match in found if match and not match[2].startswith("command: ")]


def test_log_has_a_time_and_level_before_every_line(tmp_path):
    with run_log("train"):
        say("before the folder is known")
        log_into(tmp_path)
        warn("a warning")
        debug("a detail")
    say("after")
    assert lines(tmp_path) == [
        ("INFO", "before the folder is known"),
        ("WARNING", "a warning"),
        ("DEBUG", "a detail"),
    ]
    assert "DEBUG command: python " in (tmp_path / FILE).read_text()


def test_log_of_a_later_attempt_follows_the_earlier_one(tmp_path):
    for text in ("first", "second"):
        with run_log("train"):
            log_into(tmp_path)
            say(text)
    assert lines(tmp_path) == [("INFO", "first"), ("INFO", "second")]


def failing(folder, error):
    """Raise `error` in a stage; with a `folder`, after its log has begun."""
    with run_log("train"):
        say("text")
        if folder is not None:
            log_into(folder)
        raise error


def test_nothing_is_left_where_the_work_never_began(tmp_path):
    with pytest.raises(UserError):
        failing(None, UserError("a mistake"))
    assert list(tmp_path.iterdir()) == []


def test_manifest_names_the_folder(tmp_path):
    with run_log("distill"), manifest(tmp_path / "run/manifest.json"):
        say("text")
    assert ("INFO", "text") in lines(tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("seed=-1 is not allowed"), "seed=-1 is not allowed"),
        (MemoryError(), "there was not enough memory"),
        (Interrupted(signal.SIGTERM), "stopped by SIGTERM"),
    ],
)
def test_log_ends_with_the_sentence_of_an_error(tmp_path, error, text):
    with pytest.raises(type(error)):
        failing(tmp_path, error)
    level, found = lines(tmp_path)[-1]
    assert level == "ERROR"
    assert found.startswith(text)
    assert "Traceback" not in (tmp_path / FILE).read_text()


def test_log_ends_with_the_traceback_of_a_fault(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError):
        failing(tmp_path, ZeroDivisionError("division by zero"))
    text = (tmp_path / FILE).read_text()
    assert "ERROR Traceback (most recent call last):" in text
    assert text.endswith("ZeroDivisionError: division by zero\n")
    assert capsys.readouterr() == ("text\n", "")


def warn_in_a_stage(folder):
    with run_log("train"):
        log_into(folder)
        warnings.warn("careful", RuntimeWarning, stacklevel=1)


def test_warnings_of_python_are_in_the_log_and_shown_as_before(tmp_path):
    shown = warnings.showwarning
    with pytest.warns(RuntimeWarning, match="careful"):
        warn_in_a_stage(tmp_path)
    ((level, text),) = lines(tmp_path)
    assert level == "WARNING"
    assert text.endswith("RuntimeWarning: careful")
    assert warnings.showwarning is shown


def test_stage_within_a_stage_writes_into_the_log_of_the_outer_one(tmp_path):
    with run_log("train"):
        with run_log("distill"):
            log_into(tmp_path)
            say("inner")
        say("outer")
    assert lines(tmp_path) == [("INFO", "inner"), ("INFO", "outer")]


def test_log_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / FILE).mkdir()
    with run_log("train"):
        log_into(tmp_path)
        say("text")
    out, err = capsys.readouterr()
    assert out == "text\n"
    assert err.startswith("warning: run.log could not be written")


def test_handlers_are_taken_off_again():
    before = list(logging.getLogger("asap_exp").handlers)
    with run_log("train"):
        assert len(logging.getLogger("asap_exp").handlers) == len(before) + 1
    assert logging.getLogger("asap_exp").handlers == before
