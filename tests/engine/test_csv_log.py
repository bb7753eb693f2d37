"""The CSV log when the disk or the folder fails."""

import errno
import os
import shutil
from pathlib import Path

import lightning as L
import pytest

from asap_exp.core.errors import UserError
from asap_exp.engine.csv_log import CsvLog
from asap_exp.train import trainer as fit
from tests.stages import run_train


def test_log_of_a_deleted_run_is_a_sentence(tmp_path):
    log = CsvLog(tmp_path / "run", name="logs")
    for epoch, further in enumerate(({}, {}, {"new": 1.0})):
        log.log_metrics({"epoch": epoch, **further}, step=epoch)
        if epoch:
            with pytest.raises(UserError, match=r"version_0 is no longer there.*deleted or moved"):
                log.save()
        else:
            log.save()
            shutil.rmtree(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_log_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    log = CsvLog(tmp_path, name="logs")
    log.log_metrics({"epoch": 0}, step=0)
    log.save()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Path, "open", full)
    log.log_metrics({"epoch": 1}, step=1)
    with pytest.raises(UserError, match=r"metrics\.csv could not be written \(Disk quota"):
        log.save()


class Delete(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1:
            shutil.rmtree(self.folder, ignore_errors=True)


@pytest.mark.slow
def test_run_that_is_deleted_while_it_trains_ends_in_a_sentence(tmp_path, monkeypatch):
    build = fit.build_callbacks
    deleting = Delete(tmp_path / "runs")
    monkeypatch.setattr(fit, "build_callbacks", lambda *a: [*build(*a), deleting])
    with pytest.raises(UserError, match="no longer there"):
        run_train(tmp_path)
    assert not list(tmp_path.rglob("manifest.json")), "half a run would be found by other stages"
