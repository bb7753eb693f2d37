"""What the library prints: where it goes, how a table or a path looks, prefixes of jobs."""

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.table import Table

from asap_exp.core.console import (
    LOGGER,
    PRINTER,
    counted,
    debug,
    fail,
    prefixed,
    print_debug,
    say,
    show,
    shown,
    warn,
)


@pytest.fixture
def quiet_again():
    """Debug output is off again after the test."""
    yield
    PRINTER.setLevel(logging.INFO)


def test_one_thing_is_not_called_several() -> None:
    assert [counted(n, "batch", "es") for n in (0, 1, 2000)] == [
        "0 batches",
        "1 batch",
        "2,000 batches",
    ]


def test_text_is_printed_as_it_stands_and_the_rest_with_its_kind(capsys):
    say("100 % of it, {x}")
    warn("a warning")
    fail("a mistake")
    debug("unseen")
    out, err = capsys.readouterr()
    assert out == "100 % of it, {x}\n"
    assert err == "warning: a warning\nerror: a mistake\n"


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_kind_of_a_message_is_coloured_on_a_terminal(monkeypatch, no_colour):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", no_colour)
    fail("a mistake")
    red = "error: " if no_colour else "\033[31merror: \033[0m"
    assert terminal.getvalue() == f"{red}a mistake\n"


def test_debug_output_is_printed_if_asked_for(capsys, quiet_again):
    print_debug()
    debug("seen")
    assert capsys.readouterr().err == "debug: seen\n"


class Kept(logging.Handler):
    """Handler of a user's program, on one logger."""

    def __init__(self, logger):
        super().__init__()
        self.logger, self.texts = logger, []

    def emit(self, record):
        self.texts.append(record.getMessage())

    def __enter__(self):
        self.logger.addHandler(self)
        return self.texts

    def __exit__(self, *_):
        self.logger.removeHandler(self)


def test_text_reaches_a_handler_of_its_logger_and_not_the_root():
    """A user's program may log as it likes and see nothing twice."""
    with Kept(logging.getLogger()) as root, Kept(LOGGER) as own:
        say("text")
    assert (root, own) == ([], ["text"])


def test_table_is_drawn_for_the_console_and_as_text_for_other_handlers(capsys):
    table = Table("name", title="numbers")
    table.add_row("one")
    with Kept(LOGGER) as (texts):
        show(table)
    (text,) = texts
    assert "numbers" in text
    assert text == capsys.readouterr().out.rstrip("\n")


def test_path_below_this_folder_is_relative_and_any_other_absolute(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for path in (
        "results/runs",
        Path("results/runs"),
        here / "results/runs",
        "../here/results/runs",
    ):
        assert shown(path) == "results/runs"
    assert shown("../there") == shown(tmp_path / "there") == str(tmp_path / "there")
    monkeypatch.chdir("/")
    assert shown("tmp/x") == "/tmp/x"


def test_every_line_of_a_worker_has_the_prefix_of_its_job(capsys):
    with prefixed("[job 3] "):
        print("one\ntwo")
        print("half", end="")
        print(" a line")
        say("logged")
        print("an error", file=sys.stderr)
        sys.stdout.write("no end")
    print("after")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        *("[job 3] one", "[job 3] two", "[job 3] half a line", "[job 3] logged"),
        *("[job 3] no end", "after"),
    ]
    assert err == "[job 3] an error\n"
