"""What a directory says is checked against what it holds, and a renamed one keeps its name."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.locks import held
from asap_exp.core.runs import Run, all_runs, identity
from asap_exp.data import sources
from asap_exp.data.sources import DataNotFound
from tests.conftest import Pipeline
from tests.stages import run_distill, run_evaluate, run_train, train_config

pytestmark = pytest.mark.slow


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_iters: 4", "num_iters: 5"),
        ("eps: 1", "eps: 2"),
        ("split_seed: 0", "split_seed: 1"),
    ],
)
@pytest.mark.parametrize("renamed", [False, True])
def test_changed_configuration_is_refused(
    pipeline: Pipeline, tmp_path: Path, old: str, new: str, renamed: bool
) -> None:
    run = pipeline.teacher.path
    if renamed:
        run = run.rename(tmp_path / "mine")
    edit(run / "config.yaml", old, new)
    with pytest.raises(UserError, match=r"config\.yaml was changed after the run"):
        run_distill(pipeline.results, f"teacher={run}")
    with pytest.raises(UserError, match=r"config\.yaml was changed after the run"):
        run_evaluate(pipeline.results, f"teacher={run}")


def test_changed_manifest_is_refused(pipeline: Pipeline) -> None:
    file = pipeline.teacher.path / "manifest.json"
    write_json(file, read_json(file) | {"best_val_accuracy": 0.99})
    with pytest.raises(UserError, match=r"manifest\.json was changed after it was written"):
        run_evaluate(pipeline.results, f"teacher={pipeline.teacher.path}")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("asap.safetensors", b""),
        ("asap.json", b"[]"),
        ("asap.json", b"[" * 10_000),
        ("fidelity.json", b"null"),
        ("manifest.json", b"{}"),
    ],
)
def test_damaged_map_is_compiled_again(
    pipeline: Pipeline, file: str, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {f.name: f.read_bytes() for f in pipeline.artifact.glob("asap*")}
    (pipeline.artifact / file).write_bytes(damage)
    with pytest.raises(UserError, match=file):
        run_evaluate(pipeline.results, f"artifact={pipeline.artifact}")
    assert run_distill(pipeline.results) == pipeline.artifact
    assert "Already compiled" not in capsys.readouterr().out
    assert {f.name: f.read_bytes() for f in pipeline.artifact.glob("asap*")} == whole
    if not file.startswith("asap"):  # what is not compared just above
        run_evaluate(pipeline.results)


def test_whole_map_is_not_compiled_again(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (pipeline.artifact / "asap.json").stat().st_mtime_ns
    assert run_distill(pipeline.results) == pipeline.artifact
    assert "Already compiled" in capsys.readouterr().out
    assert (pipeline.artifact / "asap.json").stat().st_mtime_ns == before


def test_map_of_data_that_has_changed_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = sources.digits

    def darker(split: str) -> sources.Images:
        images = digits(split)
        return images._replace(pixels=images.pixels // 2)

    monkeypatch.setattr(sources, "digits", darker)
    with pytest.raises(UserError, match="are not those that"):
        run_distill(pipeline.results)


def test_map_whose_data_is_gone_says_that_it_was_not_checked(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(_: str) -> sources.Images:
        raise DataNotFound("digits was not found")

    monkeypatch.setattr(sources, "digits", gone)
    assert run_distill(pipeline.results) == pipeline.artifact
    assert "could not be checked: digits was not found" in capsys.readouterr().out


@pytest.mark.parametrize("stage", [run_distill, run_evaluate])
def test_stage_of_a_run_that_is_being_trained_is_refused(
    pipeline: Pipeline, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asap_exp.core.locks.BRIEFLY", 0.0)
    extra = ("calibration.slices=2",) if stage is run_distill else ()
    with held(pipeline.teacher.path), pytest.raises(UserError, match="is in use by process"):
        stage(pipeline.results, *extra)


def test_teacher_in_use_is_not_moved_aside(pipeline: Pipeline) -> None:
    with held(pipeline.artifact), pytest.raises(UserError, match="is in use by process"):
        run_train(pipeline.results, "resume=never")
    assert Run(pipeline.teacher.path).finished


@pytest.mark.parametrize("how", ["renamed", "copied", "linked"])
def test_run_elsewhere_keeps_its_maps_and_its_name(
    pipeline: Pipeline, tmp_path: Path, how: str
) -> None:
    mine, run = tmp_path / "my teacher", pipeline.teacher
    name = run.name
    if how == "renamed":
        run.path.rename(mine)
    elif how == "copied":
        shutil.copytree(run.path, mine)
    else:
        moved = run.path.rename(tmp_path / "archive")
        mine.symlink_to(moved)
    record = run_evaluate(pipeline.results, f"teacher='{mine}'")
    assert read_json(record)["run"] == name
    assert record.is_relative_to(mine)


def test_run_renamed_in_its_place_is_found(pipeline: Pipeline) -> None:
    mine = pipeline.teacher.path.rename(pipeline.teacher.path.with_name("best"))
    (pipeline.artifact,) = (mine / "distill").iterdir()
    assert run_evaluate(pipeline.results).is_relative_to(mine)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("manifest.json", "[]"),
        ("manifest.json", "[" * 10_000),
        ("manifest.json", '{"status": "finished"}'),
        ("config.yaml", "null"),
        ("config.yaml", "{"),
    ],
)
def test_one_bad_run_stops_nobody_else_s_stage(
    pipeline: Pipeline, file: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = pipeline.softmax.path
    (bad / file).write_text(text)
    run_distill(pipeline.results)
    assert f"warning: {bad} is left out" in capsys.readouterr().err
    run_evaluate(pipeline.results)


def test_damaged_map_of_another_run_stops_nobody(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run_train(pipeline.results, "seed=1")
    folder = run_distill(pipeline.results, f"teacher={other.path}")
    (folder / "manifest.json").write_text("{")
    assert run_evaluate(pipeline.results).is_relative_to(pipeline.teacher.path)
    assert f"warning: {folder} is left out" in capsys.readouterr().err


def test_run_without_its_configuration_is_named(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    (pipeline.softmax.path / "config.yaml").unlink()
    runs = all_runs(train_config(pipeline.results).paths)
    assert [run.path for run in runs] == [pipeline.teacher.path]
    assert "has no config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1, 2", "just words"])
def test_damaged_configuration_is_written_again_by_the_same_command(
    pipeline: Pipeline, text: str
) -> None:
    file = pipeline.teacher.path / "config.yaml"
    before = Run(pipeline.teacher.path).config
    file.write_text(text)
    after = run_train(pipeline.results).config
    assert identity(after) == identity(before)


@pytest.mark.parametrize("text", ["", "[]", '{"status": 3}'])
def test_damaged_manifest_is_written_again_by_the_same_command(
    pipeline: Pipeline, text: str
) -> None:
    file = pipeline.teacher.path / "manifest.json"
    before = read_json(file)
    file.write_text(text)
    run = run_train(pipeline.results)
    assert run.finished
    assert run.manifest.teacher_sha256 == before["teacher_sha256"]


def test_evaluation_is_not_finished_before_its_record_is_there(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asap_exp.evaluate import record

    def full_disk(path: Path, value: Any) -> None:
        raise UserError(f"{path} could not be written")

    monkeypatch.setattr(record, "write_record", full_disk)
    with pytest.raises(UserError, match="could not be written"):
        run_evaluate(pipeline.results, "max_test_rows=32")
    statuses = {read_json(f)["status"] for f in pipeline.teacher.path.glob("evaluate/*/m*t.json")}
    assert statuses == {"finished", "failed"}


def test_record_holds_the_finished_manifest_of_its_own_stage(pipeline: Pipeline) -> None:
    manifest = read_json(pipeline.record)["manifests"]["evaluate"]
    assert manifest["status"] == "finished"
    assert manifest["ended"] >= manifest["started"]


def test_manifest_whose_seal_was_taken_out_is_refused(pipeline: Pipeline) -> None:
    file = pipeline.teacher.path / "manifest.json"
    manifest = read_json(file)
    del manifest["sha256"]
    write_json(file, manifest | {"best_val_accuracy": 0.99})
    with pytest.raises(UserError, match=r"manifest\.json is damaged.*its sha256.*is missing"):
        run_evaluate(pipeline.results, f"teacher={pipeline.teacher.path}")


@pytest.mark.parametrize("text", [None, "[]", "["])
def test_curves_that_were_lost_come_back_from_the_checkpoint(
    pipeline: Pipeline, text: str | None
) -> None:
    curves = pipeline.teacher.curves
    before = curves.read_text()
    curves.unlink() if text is None else curves.write_text(text)
    run_train(pipeline.results)
    assert curves.read_text() == before


def test_run_that_is_deleted_under_a_stage_is_said_to_be_gone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asap_exp.distill import distill as compile

    def deleted(*_: Any, **__: Any) -> Any:
        shutil.rmtree(pipeline.teacher.path)
        raise UserError("asap.json does not exist")

    monkeypatch.setattr(compile, "plan_fidelity", deleted)
    with pytest.raises(UserError, match="is no longer there: it was deleted or moved"):
        run_distill(pipeline.results, "calibration.slices=2")


def test_configuration_edited_in_its_directory_is_refused_until_resume_never(
    pipeline: Pipeline,
) -> None:
    edit(pipeline.teacher.path / "config.yaml", "num_iters: 4", "num_iters: 5")
    with pytest.raises(UserError, match=r"saved 5, asked for 4\nRestore .*resume=never"):
        run_train(pipeline.results)
    assert run_train(pipeline.results, "resume=never").config.attention["num_iters"] == 4


def test_map_whose_seal_was_taken_out_is_refused(pipeline: Pipeline) -> None:
    file = pipeline.artifact / "asap.json"
    identity = read_json(file)
    del identity["sha256"]
    write_json(file, identity | {"refine": 3})
    with pytest.raises(UserError, match=r"asap\.json was changed.*made again by: .*distill"):
        run_evaluate(pipeline.results, f"artifact={pipeline.artifact}")
