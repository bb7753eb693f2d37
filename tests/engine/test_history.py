"""The curves of a run are stored in its checkpoints, whatever happens to its logs."""

import struct
import zipfile
from pathlib import Path

import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted
from asap_exp.core.training_log import own_curves, training_curves
from asap_exp.engine.checkpoints import load_checkpoint
from tests.stages import run_train
from tests.train.test_resume import Killed, interrupt_at

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [(), ("callbacks.val_every_n_epochs=2",)])
def test_curves_are_what_was_logged(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = run_train(tmp_path, *options)
    logged = [{k: v for k, v in row.items() if k != "lr"} for row in training_curves(run.path)]
    curves = own_curves(run)
    assert [row.keys() for row in curves] == [row.keys() for row in logged]
    for row, expected in zip(curves, logged, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)


def test_epoch_whose_log_was_lost_is_in_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be killed between its checkpoint and the row of its log."""
    whole = own_curves(run_train(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=1)
        with pytest.raises((Killed, Interrupted)):
            run_train(tmp_path / "parts")
    for log in (tmp_path / "parts").rglob("metrics.csv"):
        log.unlink()
    assert own_curves(run_train(tmp_path / "parts")) == whole


def test_flipped_bits_in_the_weights_of_a_checkpoint_are_found(tmp_path: Path) -> None:
    path = run_train(tmp_path).checkpoint
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = [part for part in archive.infolist() if "/data/" in part.filename]
    for part in parts[:: len(parts) // 20]:
        damaged = bytearray(whole)
        name, extra = struct.unpack("<HH", whole[part.header_offset + 26 : part.header_offset + 30])
        damaged[part.header_offset + 30 + name + extra] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
            load_checkpoint(path)
