"""A finished run is complete, finite, and of this seed and today's data."""

import os
import signal
from pathlib import Path

import pytest
import torch

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.interruption import Interrupted, interruptible
from asap_exp.core.locks import held
from asap_exp.core.runs import Run, run_directory
from asap_exp.core.tensors import load_tensors
from asap_exp.data import sources
from asap_exp.data.sources import DataNotFound
from asap_exp.models.teachers import find_teacher
from asap_exp.train import trainer as training_fit
from asap_exp.train.trainer import resolved
from tests.stages import run_distill, run_train, train_config

pytestmark = pytest.mark.slow


def test_second_training_is_told_of_the_first(tmp_path: Path) -> None:
    place = run_directory(resolved(train_config(tmp_path)))
    for resume in ("auto", "never"):
        with held(place), pytest.raises(UserError, match=r"is in use by process \d+ on"):
            run_train(tmp_path, f"resume={resume}")
    assert not place.exists()


def test_last_weights_come_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exported weights are intact even if another process replaces the checkpoint."""
    keep_last = ("recipe.keep=last", "data.train_on=train+val")
    whole = run_train(tmp_path / "whole", *keep_last)
    export = training_fit.export

    def after_another_process(config, run, module, trainer):
        run.checkpoint.write_bytes(b"another process's")
        return export(config, run, module, trainer)

    monkeypatch.setattr(training_fit, "export", after_another_process)
    run = run_train(tmp_path / "run", *keep_last)
    assert run.manifest.kept_epoch == 2
    assert run.manifest.teacher_sha256 == whole.manifest.teacher_sha256


@pytest.mark.parametrize("keep", ["best", "last"])
def test_weights_of_nan_are_no_result(tmp_path: Path, keep: str) -> None:
    one_step = ("recipe.epochs=1", "recipe.warmup_epochs=0", "trainer.limit_train_batches=1")
    options = (*one_step, "attention.eps=1e-30", f"recipe.keep={keep}")
    with pytest.raises(UserError, match=r"weights of epoch 1: .* values of .* are NaN.*recipe\.lr"):
        run_train(tmp_path, *options)
    run = Run(run_directory(resolved(train_config(tmp_path, *options))))
    assert run.manifest.status == "failed"
    assert not run.weights.exists()


def test_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    other = run_train(tmp_path, "seed=1")
    with pytest.raises(UserError, match="seed: saved 1, asked for 0"):
        run_train(tmp_path, "seed=0", f"resume={other.checkpoint}")


class TrackerDown(UserError):
    pass


def tracker_down(*_: object, **__: object) -> None:
    raise TrackerDown("wandb did not start")


def disk_error(*_: object, **__: object) -> None:
    raise UserError("could not be written")


def killed(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "failure"),
    [("wandb_run", tracker_down), ("build_trainer", disk_error), ("wandb_run", killed)],
)
def test_earlier_run_is_put_back_where_the_new_one_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failure: object
) -> None:
    run = run_train(tmp_path)
    before = run.weights.read_bytes()
    monkeypatch.setattr(training_fit, name, failure)
    with pytest.raises((UserError, Interrupted)), interruptible():
        run_train(tmp_path, "resume=never")
    assert run.weights.read_bytes() == before
    assert Run(run.path).finished
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_run_moved_aside_is_named_and_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_train(tmp_path)
    config = train_config(tmp_path)
    monkeypatch.setattr(training_fit, "export", disk_error)
    with pytest.raises(UserError, match="could not be written"):
        run_train(tmp_path, "resume=never")
    aside = run.path.with_name(f"{run.path.name}~1")
    assert f"The earlier run was moved to {aside}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"teacher='{aside}'"):
        find_teacher(config.paths, "digits", None)
    taken = find_teacher(config.paths, "digits", str(aside))
    assert taken.name == run.name
    run_distill(tmp_path, f"teacher='{aside}'")


def test_run_moved_aside_is_found_while_its_successor_has_not_started(
    tmp_path: Path,
) -> None:
    """Finds the old run after a power cut between moving it aside and starting the new one."""
    run = run_train(tmp_path)
    aside = run.path.rename(run.path.with_name(f"{run.path.name}~1"))
    run.path.mkdir()
    (run.path / "config.yaml").write_text((aside / "config.yaml").read_text())
    assert find_teacher(train_config(tmp_path).paths, "digits", None).path == aside


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_damaged_teacher_is_made_again_from_its_checkpoint(
    tmp_path: Path, damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_train(tmp_path)
    before = run.weights.read_bytes()
    if damage is None:
        flipped = bytearray(before)
        flipped[-5] ^= 1
        damage = bytes(flipped)
    run.weights.write_bytes(damage)
    with pytest.raises(UserError, match=r"teacher\.safetensors"):
        run_distill(tmp_path)
    again = run_train(tmp_path)
    assert again.weights.read_bytes() == before
    said = capsys.readouterr()
    assert "The run is repeated" in said.err
    assert "Continuing from" in said.out
    assert again.manifest.kept_epoch == 2
    run_distill(tmp_path)


def test_teacher_without_a_checkpoint_is_trained_again(tmp_path: Path) -> None:
    run = run_train(tmp_path)
    before = load_tensors(run.weights)
    run.weights.write_bytes(b"")
    run.checkpoint.unlink()
    after = load_tensors(run_train(tmp_path).weights)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def darker(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = sources.digits

    def changed(split: str) -> sources.Images:
        images = digits(split)
        return images._replace(pixels=images.pixels // 2)

    monkeypatch.setattr(sources, "digits", changed)


def test_finished_run_of_other_data_is_refused_with_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_train(tmp_path)
    darker(monkeypatch)
    with pytest.raises(UserError, match=r"was trained on data other than.*\n  training data: then"):
        run_train(tmp_path)
    again = run_train(tmp_path, "resume=never")
    assert again.manifest.data["train_sha256"] != run.manifest.teacher_sha256
    assert again.path == run.path


def test_finished_run_whose_data_is_gone_says_that_it_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_train(tmp_path)

    def gone(_: str) -> sources.Images:
        raise DataNotFound("digits was not found")

    monkeypatch.setattr(sources, "digits", gone)
    assert run_train(tmp_path).path == run.path
    out = capsys.readouterr().out
    assert "Already finished" in out
    assert "could not be checked: digits was not found" in out


def test_manifest_is_sealed(tmp_path: Path) -> None:
    run = run_train(tmp_path)
    assert read_json(run.path / "manifest.json")["sha256"]
