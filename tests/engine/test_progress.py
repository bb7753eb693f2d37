"""Progress of a training: a line per epoch, also on a terminal, counted from 1."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asap_exp.core.console import duration
from tests.stages import TINY, TINY_TEXT, run_train, train_config

EPOCH = r"epoch {}/3: loss \d\.\d{{4}}, val accuracy \d\d?\.\d\d %, \d+\.\d s \([\d,]+ images/s\)"


@pytest.mark.slow
def test_line_per_epoch_has_metrics_time_rate_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_train(tmp_path, "callbacks.progress_bar=true")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        left = r", \d+\.\d s left" if number < 3 else ""
        assert re.fullmatch(EPOCH.format(number) + left, line), line


@pytest.mark.slow
def test_masked_language_model_shows_its_perplexity(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from asap_exp.train.trainer import train

    options = ("task=wikitext", "experiment=wikitext_excerpt", "callbacks.progress_bar=true")
    train(train_config(tmp_path, *options, "trainer.limit_train_batches=1", tiny=TINY_TEXT))
    assert re.search(r"val perplexity \d+\.\d\d, .* blocks of text/s\)", capsys.readouterr().out)


@pytest.mark.slow
def test_lines_stay_on_a_terminal_and_the_bar_counts_from_one(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    words = [*TINY, "callbacks.progress_bar=true", f"paths.results={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "asap_exp.train", *words],
        stdout=its, stderr=its, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(its)
    text = b""
    while True:
        try:
            text += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.decode())
    for number in (1, 2, 3):
        assert re.search(rf"(?m)epoch {number}/3: loss .*\r?$", plain), plain
        assert f"Epoch {number}/3" in plain
    assert "Epoch 0" not in plain


def test_durations_are_in_words() -> None:
    assert [duration(s) for s in (0.04, 9.9, 75.4, 3599.9, 7500)] == [
        "0.0 s",
        "9.9 s",
        "1 min 15 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
