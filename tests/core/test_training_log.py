"""Training curves from logs that are truncated, damaged, lost or another run's."""

from pathlib import Path

import pytest

from asap_exp.core.files import write_json
from asap_exp.core.runs import Run
from asap_exp.core.sealed import digest
from asap_exp.core.training_log import own_curves, training_curves
from asap_exp.engine.csv_log import CsvLog
from tests.fake_runs import fake_run

LOG = "epoch,step,train/loss_epoch,train/loss_step,val/accuracy\r\n"
ROWS = [f"{e},{10 * e + 9},{2.5 - e},0.5,0.{e}25\r\n" for e in range(4)]
CURVES = [
    {"epoch": e, "train/loss_epoch": 2.5 - e, "val/accuracy": float(f"0.{e}25")} for e in range(4)
]


def logged(run: Path, text: str = LOG + "".join(ROWS), version: int = 0) -> Path:
    file = run / "logs" / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text(text, newline="")
    return file


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Write a finished run with its log and its curves."""
    finished = fake_run(tmp_path, curves_sha256=digest({"curves": CURVES}))
    write_json(finished.curves, CURVES)
    logged(finished.path)
    return finished


def test_every_epoch_has_its_values(run, capsys):
    assert own_curves(run) == training_curves(run.path) == CURVES
    assert capsys.readouterr().err == ""


def test_row_without_an_epoch_is_none_and_a_later_attempt_wins(tmp_path, capsys):
    logged(tmp_path, LOG + "".join(ROWS[:3]) + ",3,,0.5,\r\n")
    later = [row.replace("0.5", "0.7") for row in ROWS[2:]]
    logged(tmp_path, LOG + "".join(later).replace("0.225", "0.9"), version=10)
    (tmp_path / "logs" / "version_x").mkdir()
    found = training_curves(tmp_path)
    assert [row["val/accuracy"] for row in found] == [0.025, 0.125, 0.9, 0.325]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cut", range(1, len(ROWS[3]) + 1))
def test_cut_last_line_is_left_out(tmp_path, capsys, cut):
    """The cut may fall within a number, whose beginning is another number."""
    logged(tmp_path, (LOG + "".join(ROWS))[:-cut])
    assert training_curves(tmp_path) == CURVES[:3]
    assert capsys.readouterr().err == ""


DAMAGES = {
    "a letter in a number": (lambda text: text.replace("0.125", "0.1x5"), [0, 2, 3]),
    "not UTF-8": (lambda text: text.replace("0.125", "0.1\xff5"), [0, 2, 3]),
    "NUL": (lambda text: text.replace("0.125", "0.1\x005"), [0, 2, 3]),
    "infinite": (lambda text: text.replace("0.125", "1e999"), [0, 2, 3]),
    "not a number": (lambda text: text.replace("0.125", "nan"), [0, 2, 3]),
    "a column less": (lambda text: text.replace(",0.125", ""), [0, 2, 3]),
    "a quote": (lambda text: text.replace("0.125", '0."25'), [0, 2, 3]),
    "half an epoch": (lambda text: text.replace("\n1,19", "\n1.5,19"), [0, 2, 3]),
    "before the first epoch": (lambda text: text.replace("\n1,19", "\n-1,19"), [0, 2, 3]),
    "no header": (lambda text: text.replace("epoch,step", "????"), []),
    "a byte of the header": (lambda text: text.replace("epoch,", "ep\xffch,", 1), []),
    "zeros": (lambda text: "\0" * len(text) + "\n", []),
}


@pytest.mark.parametrize(("damage", "left"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_row_is_left_out_with_a_warning(tmp_path, capsys, damage, left):
    text = damage(LOG + "".join(ROWS))
    logged(tmp_path).write_bytes(text.encode("latin-1"))
    assert training_curves(tmp_path) == [CURVES[epoch] for epoch in left]
    assert "metrics.csv" in capsys.readouterr().err


def test_empty_log_has_no_curves(tmp_path):
    logged(tmp_path, "")
    assert training_curves(tmp_path) == []


def test_log_that_is_a_folder_is_left_out(tmp_path, capsys):
    (tmp_path / "logs" / "version_0" / "metrics.csv").mkdir(parents=True)
    logged(tmp_path, version=1)
    assert training_curves(tmp_path) == CURVES
    assert "is a folder, not a file" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [None, "", "[", "[]", '[{"epoch": 0}]'])
def test_curves_that_were_changed_are_left_out(run, capsys, damage):
    run.curves.unlink() if damage is None else run.curves.write_text(damage)
    assert own_curves(run) == []
    assert f"warning: the record has no training curves: {run.curves}" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", LOG + "".join(ROWS).replace("0.125", "0.175")])
def test_log_that_was_changed_changes_no_curves(run, text):
    file = run.path / "logs" / "version_0" / "metrics.csv"
    file.unlink() if text is None else file.write_text(text, newline="")
    assert own_curves(run) == CURVES


def test_curves_of_a_run_from_before_they_were_kept_are_those_of_its_logs(tmp_path):
    run = fake_run(tmp_path)
    logged(run.path)
    assert own_curves(run) == CURVES


def test_new_column_never_leaves_less_than_there_was(tmp_path, monkeypatch):
    """The file is complete at every moment, because it is replaced by renaming."""
    log = CsvLog(tmp_path, name="logs")
    file = tmp_path / "logs" / "version_0" / "metrics.csv"
    log.log_metrics({"epoch": 0, "train/loss": 2.0}, step=0)
    log.save()
    log.log_metrics({"epoch": 1, "train/loss": 1.0}, step=1)
    log.save()
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append((self.read_text(), target.read_text()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    log.log_metrics({"epoch": 2, "train/loss": 0.5, "val/loss": 0.75}, step=2)
    log.save()
    ((new, old),) = seen
    assert old.splitlines() == ["epoch,step,train/loss", "0,0,2.0", "1,1,1.0"]
    assert new == file.read_text()
    assert [row.get("val/loss") for row in training_curves(tmp_path)] == [None, None, 0.75]
    log.log_metrics({"epoch": 3, "train/loss": 0.25}, step=3)
    log.finalize("success")
    assert [row["train/loss"] for row in training_curves(tmp_path)] == [2.0, 1.0, 0.5, 0.25]
