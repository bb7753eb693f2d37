"""An interrupted run continues as if it had not been interrupted; nothing saved is lost."""

from pathlib import Path

import lightning as L
import pytest
import torch

from asap_exp.core.errors import UserError
from asap_exp.core.runs import run_directory
from asap_exp.core.tensors import load_tensors
from asap_exp.data import sources
from asap_exp.engine import checkpoints
from asap_exp.engine.checkpoints import load_checkpoint
from asap_exp.train import trainer as training_fit
from asap_exp.train.trainer import resolved
from tests.stages import run_train, train_config

pytestmark = pytest.mark.slow


class Killed(Exception):
    pass


class KillAtEpoch(L.Callback):
    """Callback that ends the work in the middle of an epoch, as a power cut would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == self.epoch:
            raise Killed


def interrupt_at(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    build = training_fit.build_callbacks
    monkeypatch.setattr(
        training_fit, "build_callbacks", lambda *a: [*build(*a), KillAtEpoch(epoch)]
    )


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("recipe.ema_decay=0.9", "model.dropout=0.1"),
        ("data.train_on=train+val", "recipe.keep=last", "data.augment.crop_padding=1"),
    ],
    ids=["plain", "ema", "train+val"],
)
def test_resumed_run_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    whole = run_train(tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=2)
        with pytest.raises(Killed):
            run_train(tmp_path / "parts", *options)
    directory = run_directory(resolved(train_config(tmp_path / "parts", *options)))
    assert (directory / "checkpoints" / "last.ckpt").exists()
    assert not (directory / "teacher.safetensors").exists()

    resumed = run_train(tmp_path / "parts", *options)

    assert resumed.manifest.resumed_from == "last.ckpt"
    expected, got = load_tensors(whole.weights), load_tensors(resumed.weights)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


def test_best_epoch_survives_a_move_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("recipe.epochs=4",)
    whole = run_train(tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=3)
        with pytest.raises(Killed):
            run_train(tmp_path / "before", *options)
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = run_train(tmp_path / "after", *options)
    assert resumed.manifest.kept_epoch == whole.manifest.kept_epoch
    assert resumed.manifest.best_val_accuracy == whole.manifest.best_val_accuracy
    assert resumed.manifest.teacher_sha256 == whole.manifest.teacher_sha256
    (attempt,) = resumed.manifest.earlier_attempts
    assert attempt.status == "failed"


def test_checkpoint_is_written_as_often_as_asked_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = "callbacks.checkpoint_seconds=1000"
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=2)
        with pytest.raises(Killed):
            run_train(tmp_path, seldom)
    last = run_directory(resolved(train_config(tmp_path))) / "checkpoints" / "last.ckpt"
    assert not last.exists()
    often = run_train(tmp_path)
    assert often.manifest.resumed_from is None
    assert load_checkpoint(last)["epoch"] == 2
    again = run_train(tmp_path, seldom, "resume=never")
    assert again.path == often.path, "the interval is no part of what a run is"
    assert load_checkpoint(last)["epoch"] == 2


def test_best_epoch_that_no_validation_named_is_asked_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.BestWeights, "on_validation_epoch_end", lambda *_: None)
    with pytest.raises(UserError, match=r"no best epoch to keep.*val/accuracy.*recipe\.keep=last"):
        run_train(tmp_path)


def test_nan_is_no_best_score() -> None:
    best = checkpoints.BestWeights("val/loss", smallest=True)
    assert not best.better(float("nan"))
    assert best.better(2.0)
    best.score = 2.0
    assert [best.better(score) for score in (float("nan"), 2.5, 1.5)] == [False, False, True]


def test_checkpoint_of_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=2)
        with pytest.raises(Killed):
            run_train(tmp_path)
    digits = sources.digits

    def darker(split: str) -> sources.Images:
        images = digits(split)
        return images._replace(pixels=images.pixels // 2)

    monkeypatch.setattr(sources, "digits", darker)
    with pytest.raises(UserError, match=r"data_content\.train_sha256: saved"):
        run_train(tmp_path)


def test_finished_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_train(tmp_path)
    before = run.weights.stat().st_mtime_ns
    assert run_train(tmp_path).path == run.path
    assert run.weights.stat().st_mtime_ns == before
    assert "Already finished" in capsys.readouterr().out


def test_resume_never_moves_the_earlier_run_aside(tmp_path: Path) -> None:
    run = run_train(tmp_path)
    before = run.weights.read_bytes()
    again = run_train(tmp_path, "resume=never")
    aside = run.path.with_name(f"{run.path.name}~1")
    assert again.path == run.path
    assert (aside / "teacher.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("attention.eps=2", "attention.eps: saved 1.0, asked for 2"),
        ("model.dim=32", "model.dim: saved 16, asked for 32"),
        ("model.depth=1", "model.depth: saved 2, asked for 1"),
    ],
)
def test_checkpoint_of_another_configuration_is_refused(
    tmp_path: Path, change: str, words: str
) -> None:
    last = run_train(tmp_path).path / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=words):
        run_train(tmp_path, change, f"resume={last}")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "code"])
def test_damaged_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=2)
        with pytest.raises(Killed):
            run_train(tmp_path)
    last = run_directory(resolved(train_config(tmp_path))) / "checkpoints" / "last.ckpt"
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "garbage":
        last.write_bytes(b"not a checkpoint")
    else:
        torch.save({"object": Path("/")}, last)  # needs code to be unpickled
    with pytest.raises(UserError, match=r"last\.ckpt is damaged or not from .*resume=never"):
        run_train(tmp_path)


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.ckpt does not exist"):
        run_train(tmp_path, f"resume={tmp_path / 'nowhere.ckpt'}")


def test_folder_is_no_checkpoint(tmp_path: Path) -> None:
    message = (
        f"^resume={tmp_path} is a folder, not a checkpoint; give .*, resume=%s/checkpoints/last"
    )
    with pytest.raises(UserError, match=message % "RUN"):
        checkpoints.load_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match=message % tmp_path):
        checkpoints.load_checkpoint(tmp_path)


def test_failed_save_leaves_the_previous_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = checkpoints.SafeCheckpointIO()
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)

    def full_disk(value: object, file: Path) -> None:
        Path(file).write_bytes(b"half a checkp")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*unharmed"):
        io.save_checkpoint({"epoch": 2}, path)
    assert io.load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
