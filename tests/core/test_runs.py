"""Run directories: their paths, and the choice of the teacher."""

import json
import os
import re
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from asap_exp.core import manifest as manifest_module
from asap_exp.core import runs, typed
from asap_exp.core.composing import compose
from asap_exp.core.config import PathsConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.locks import held
from asap_exp.core.manifest import code_version, manifest
from asap_exp.core.runs import (
    Run,
    all_runs,
    claim,
    named_run,
    newest_artifact,
    public_config,
    recipe_hash,
    refuse_other,
    repair,
    run_directory,
    run_name,
    to_dict,
)
from asap_exp.distill.config import DistillConfig
from asap_exp.models.teachers import find_teacher
from tests.fake_runs import fake_map, fake_run, train_config

COMPUTED_DIFFERENTLY = (
    "recipe.lr=0.002",
    "recipe.keep=last",
    "model.depth=2",
    "model.qk_norm=false",
    "attention.num_iters=5",
    "attention=softmax",
    "data.val_fraction=0.2",
    "data.split_seed=1",
    "data.augment.mixup=0",
    "trainer.precision=32-true",
    "trainer.limit_train_batches=2",
    "callbacks.val_every_n_epochs=2",
    "recipe.no_decay=vectors",
    "recipe.optimizer=nadamw",
    "recipe.optimizer_options={eps: 1.0e-7}",
    "recipe.schedule=poly",
    "callbacks.early_stopping.patience=3",
    "callbacks.extra=[{_target_: a.B}]",
    "module={_target_: a.B}",
    "trainer.accumulate_grad_batches=2",
    "trainer.fast_dev_run=true",
    "trainer.max_time=00:01:00:00",
)
COMPUTED_ALIKE = (
    "data.root=elsewhere",
    "data.cache=elsewhere",
    "logger=csv",
    "logger.tags=[one]",
    "resume=never",
    "callbacks.progress_bar=false",
    "callbacks.diagnostic_samples=0",
    "trainer.accelerator=cpu",
    "trainer.compile=true",
    "trainer.cpu_threads=2",
    "trainer.log_every_n_steps=1",
    "trainer.micro_batch=4",
    "trainer.profiler=simple",
    "trainer.deterministic=true",
)


def paths(results: Path) -> PathsConfig:
    return PathsConfig(results=str(results))


def test_directory_is_named_by_task_model_attention_and_seed():
    directory = run_directory(train_config("seed=3", "attention=softmax", "paths.results=out"))
    assert directory.parts[:4] == ("out", "runs", "digits", "vit-softmax")
    assert directory.name.endswith("-s3")
    assert directory == run_directory(
        train_config("seed=3", "attention=softmax", "paths.results=out")
    )


@pytest.mark.parametrize("override", [*COMPUTED_DIFFERENTLY, "seed=1"])
def test_directory_is_another_where_something_else_is_computed(override):
    assert run_directory(train_config(override)) != run_directory(train_config())


@pytest.mark.parametrize("override", COMPUTED_ALIKE)
def test_directory_is_the_same_where_the_same_is_computed(override):
    assert asdict(train_config(override)) != asdict(train_config())
    assert run_directory(train_config(override)) == run_directory(train_config())


@pytest.mark.parametrize("override", ["attention=softmax", "attention.num_iters=5", "seed=1"])
def test_recipe_is_the_same_whatever_the_attention_and_seed(override):
    assert recipe_hash(train_config(override)) == recipe_hash(train_config())


@pytest.mark.parametrize("override", [o for o in COMPUTED_DIFFERENTLY if "attention" not in o])
def test_recipe_is_another_where_anything_else_differs(override):
    assert recipe_hash(train_config(override)) != recipe_hash(train_config())


def test_claimed_directory_holds_the_configuration(tmp_path):
    config = train_config(f"paths.results={tmp_path}", "recipe.lr=0.002")
    run = claim(config)
    assert run.path == run_directory(config)
    assert Run(run.path).config == config
    assert run.name == "/".join(run.path.parts[-3:])
    assert run.label == run.name.replace("/", "-")
    assert run.label == f"{run.group}-s{config.seed}"
    assert not run.finished


def test_same_configuration_claims_its_directory_again(tmp_path):
    config = train_config(f"paths.results={tmp_path}")
    first = claim(config)
    (first.path / "kept").touch()
    assert claim(config) == first
    assert (first.path / "kept").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "difference"),
    [
        ("recipe.lr=0.002", "recipe.lr: saved 0.002, asked for 0.003"),
        ("attention.num_iters=5", "attention.num_iters: saved 5, asked for 20"),
        ("seed=7", "seed: saved 7, asked for 0"),
    ],
)
def test_directory_of_another_configuration_is_refused_with_what_differs(
    tmp_path, saved, difference
):
    # A directory with another configuration can only be a copy.
    other = claim(train_config(f"paths.results={tmp_path / 'other'}", saved))
    asked = train_config(f"paths.results={tmp_path}")
    text = (other.path / "config.yaml").read_text()
    directory = run_directory(asked)
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="another configuration and is not overwritten") as error:
        refuse_other(asked)
    _, *differences, advice = [line.strip() for line in str(error.value).splitlines()]
    assert differences == [difference]
    assert "resume=never" in advice
    assert (directory / "config.yaml").read_text() == text


@pytest.mark.slow
def test_all_runs_are_those_of_the_task_in_order(tmp_path):
    runs = [fake_run(tmp_path, f"seed={seed}") for seed in (1, 0)]
    cifar = fake_run(tmp_path, task="cifar")
    assert all_runs(paths(tmp_path)) == [cifar, runs[1], runs[0]]
    assert all_runs(paths(tmp_path), "digits") == [runs[1], runs[0]]
    assert all_runs(paths(tmp_path / "nowhere")) == []


@pytest.mark.slow
def test_teacher_is_the_newest_finished_sinkhorn_run(tmp_path, capsys):
    fake_run(tmp_path, "seed=1", ended="2026-01-01T10:00:00+00:00")
    newest = fake_run(tmp_path, "seed=0", ended="2026-01-02T09:00:00+00:00")
    fake_run(tmp_path, "seed=2", ended="2026-01-01T23:00:00+00:00")
    fake_run(tmp_path, "seed=3", ended="2026-01-03T00:00:00+00:00", status="failed")
    fake_run(tmp_path, "attention=softmax", ended="2026-01-03T00:00:00+00:00")
    no_weights = fake_run(tmp_path, "seed=4", ended="2026-01-03T00:00:00+00:00")
    no_weights.weights.unlink()
    assert find_teacher(paths(tmp_path), None, None) == newest
    assert str(newest.path) in capsys.readouterr().out


def test_teacher_of_a_task(tmp_path):
    digits = fake_run(tmp_path, ended="2026-01-01T00:00:00+00:00")
    cifar = fake_run(tmp_path, task="cifar", ended="2026-01-02T00:00:00+00:00")
    assert find_teacher(paths(tmp_path), None, None) == cifar
    assert find_teacher(paths(tmp_path), "digits", None) == digits


def test_run_shortened_for_debugging_is_taken_by_its_name_alone(tmp_path, capsys):
    short = fake_run(tmp_path, "debug=fast", ended="2026-01-03T00:00:00+00:00")
    trial = fake_run(tmp_path, "trainer.fast_dev_run=true", ended="2026-01-04T00:00:00+00:00")
    with pytest.raises(
        UserError, match=r"shortened by debug= or trainer\.fast_dev_run=:\n  "
    ) as error:
        find_teacher(paths(tmp_path), None, None)
    whole = fake_run(tmp_path, ended="2026-01-01T00:00:00+00:00")
    assert find_teacher(paths(tmp_path), None, None) == whole
    said = capsys.readouterr().out
    for run in (short, trial):
        assert f"teacher='{run.path}'" in str(error.value)
        assert f" {run.path}" in said.partition("Not considered")[2]
    assert "'" not in said
    assert find_teacher(paths(tmp_path), None, str(short.path)) == short


def test_mark_of_a_debugging_run_is_no_part_of_its_identity():
    config = train_config("debug=fast")
    assert config.debug == "fast"
    assert to_dict(config)["debug"] == "fast"
    assert run_name(replace(config, debug=None)) == run_name(config)
    assert "debug" not in to_dict(train_config())


def test_teacher_that_is_named_is_taken(tmp_path, capsys):
    old = fake_run(tmp_path, "seed=1")
    fake_run(tmp_path, ended="2026-01-02T00:00:00+00:00")
    assert find_teacher(paths(tmp_path / "elsewhere"), "digits", str(old.path)) == old
    assert str(old.path) in capsys.readouterr().out


def test_no_teacher_says_how_to_make_one(tmp_path):
    fake_run(tmp_path, "attention=softmax")
    fake_run(tmp_path, status="running")
    with pytest.raises(UserError, match=r"(?m)no finished Sinkhorn teacher in .*task=digits$"):
        find_teacher(paths(tmp_path), None, None)
    with pytest.raises(UserError, match=r"(?m)teacher of task cifar in .*task=cifar$"):
        find_teacher(paths(tmp_path), "cifar", None)


def test_teacher_of_another_task_is_refused(tmp_path):
    run = fake_run(tmp_path)
    with pytest.raises(UserError, match=r"trained on task digits, but task=cifar was asked for"):
        find_teacher(paths(tmp_path), "cifar", str(run.path))


def test_killed_run_is_told_from_a_running_one(tmp_path):
    """A killed process could not write how it ended, but no longer holds the directory."""
    run = fake_run(tmp_path, status="running")
    with held(run.path):
        assert re.match(rf"still running: process {os.getpid()} on ", run.unfinished)
    assert run.unfinished.startswith("killed, perhaps for lack of memory; it is continued by: ")


@pytest.mark.parametrize("status", ["running", "failed"])
def test_unfinished_teacher_is_refused(tmp_path, status):
    run = fake_run(tmp_path, status=status)
    with pytest.raises(UserError, match=r"does not hold a finished teacher.*resume=auto"):
        find_teacher(paths(tmp_path), None, str(run.path))


@pytest.mark.parametrize("lost", ["manifest.json", "teacher.safetensors"])
def test_teacher_without_its_files_is_refused(tmp_path, lost):
    run = fake_run(tmp_path)
    (run.path / lost).unlink()
    with pytest.raises(UserError, match="does not hold a finished teacher"):
        find_teacher(paths(tmp_path), None, str(run.path))


def test_softmax_teacher_is_refused(tmp_path):
    run = fake_run(tmp_path, "attention=softmax")
    with pytest.raises(UserError, match=r"attention=softmax; only a Sinkhorn teacher has a dual"):
        find_teacher(paths(tmp_path), None, str(run.path))


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.yaml"):
        find_teacher(paths(tmp_path), None, str(tmp_path))


def test_a_run_is_found_by_its_name_and_by_its_path(tmp_path, monkeypatch):
    run = fake_run(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    for given in (run.name, f"results/runs/{run.name}", str(run.path)):
        assert find_teacher(paths(tmp_path / "results"), None, given).name == run.name
        assert named_run(paths(tmp_path / "results"), given).path.samefile(run.path)


@pytest.mark.parametrize("text", ["[1, 2", "- a list", "just words", "", "task: {name: digits}"])
def test_damaged_configuration_is_a_sentence(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError):
        _ = Run(tmp_path).config


def test_newest_artifact_is_the_last_that_finished(tmp_path):
    run = fake_run(tmp_path)
    assert newest_artifact(run) is None
    for name, status, ended in (
        ("b", "finished", "2026-01-01"),
        ("a", "finished", "2026-01-02"),
        ("c", "failed", "2026-01-03"),
    ):
        fake_map(run, name, status=status, ended=ended)
    # Killed immediately, so there is neither an end nor an outcome.
    fake_map(run, "d", status="running", ended=None, wall_seconds=None)
    assert newest_artifact(run) == ("2026-01-02", run.path / "distill" / "a")


def test_of_two_that_finish_at_once_the_later_is_the_newest(tmp_path):
    """Several small maps finish within a second; a manifest with whole seconds is older."""
    run = fake_run(tmp_path)
    for name in ("b", "a"):
        facts = {"stage": "distill", "seed": 0, "config": {}, "teacher": run.name}
        with manifest(run.path / "distill" / name / "manifest.json", **facts):
            time.sleep(0.002)
    newest = newest_artifact(run)
    assert newest is not None
    assert newest[1] == run.path / "distill/a"
    before = read_json(run.path / "distill/a/manifest.json")["ended"]
    whole = re.sub(r"\.\d+", "", before)
    assert whole != before
    assert whole < before


@pytest.mark.parametrize("folder", ["results", "a place"])
def test_repair_names_the_command_that_works_where_the_run_lies(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    command = "python -m asap_exp.train task=digits resume=never paths.results=/elsewhere"
    run = fake_run(Path(folder), command=command)
    said = repair(run)
    assert "python -m asap_exp.train task=digits" in said
    assert "/elsewhere" not in said
    assert ("paths.results" in said) == (folder != "results")
    assert folder == "results" or f"\"paths.results='{tmp_path / folder}'\"" in said
    moved = run.path.rename(tmp_path / "archive")
    assert "Restore it from a copy" in repair(Run(moved))


def test_record_of_a_configuration_names_no_folder(tmp_path):
    train = public_config(
        train_config("data.root=/folder/a", "data.cache=/folder/b", "paths.results=/folder/c")
    )
    assert "/folder" not in json.dumps(train)
    assert train["data"]["name"] == "digits"
    assert asdict(train_config().recipe).items() >= train["recipe"].items()
    given = ["teacher=/folder/a", "data.root=/folder/b", "data.cache=/folder/c"]
    distill = public_config(compose("distill", [*given, "paths.results=/folder/d"], DistillConfig))
    assert "/folder" not in json.dumps(distill)
    assert distill["calibration"]["slices"] == 32


def test_manifest_is_running_while_work_runs_and_finished_after(tmp_path):
    path = tmp_path / "manifest.json"
    with manifest(path, stage="train", seed=0) as record:
        during = read_json(path)
        record["accuracy"] = 0.5
    assert during["status"] == "running"
    assert (during["stage"], during["seed"]) == ("train", 0)
    assert "ended" not in during
    after = read_json(path)
    assert after["status"] == "finished"
    assert after["accuracy"] == 0.5
    assert after["ended"] >= after["started"]
    assert after["wall_seconds"] >= 0
    assert {"command", "code", "versions", "hardware"} <= after.keys()
    assert after["versions"]["torch"]
    assert after["hardware"]["cpu_threads"] >= 1


def fail_with(failure, path):
    with manifest(path) as record:
        record["epochs"] = 3
        raise failure


@pytest.mark.parametrize("failure", [RuntimeError("diverged"), KeyboardInterrupt("stopped")])
def test_manifest_of_failed_work_says_why(tmp_path, failure):
    path = tmp_path / "manifest.json"
    with pytest.raises(type(failure)):
        fail_with(failure, path)
    after = read_json(path)
    assert after["status"] == "failed"
    assert after["error"] == f"{type(failure).__name__}: {failure}"
    assert after["epochs"] == 3
    assert "ended" in after


@pytest.mark.parametrize(
    ("file", "dirty"),
    [
        (None, False),
        ("src/asap_exp/core/manifest.py", True),
        ("README.md", True),
        ("src/asap_exp/new.py", True),
        ("conf/train/task/new.yaml", True),
        ("src/asap_exp/ignored.pyc", False),
        ("results/tables.md", False),
        ("notes/today.md", False),
    ],
)
def test_commit_of_a_checkout_is_git_s_and_dirty_with_changes_of_code(
    tmp_path, monkeypatch, file, dirty
):
    tracked = ["src/asap_exp/core/manifest.py", "src/asap_exp/core/__init__.py", "README.md"]
    for name in (*tracked, "results/tables.md"):
        write(tmp_path / name, "first")
    write(tmp_path / ".gitignore", "*.pyc")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # as within a hook of git's
        monkeypatch.delenv(name, raising=False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init"], ["add", "."], ["commit", "-m", "First", "--no-gpg-sign"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    if file is not None:
        write(tmp_path / file, "second")
    monkeypatch.setattr(manifest_module, "__file__", str(tmp_path / tracked[0]))
    monkeypatch.setenv("ASAP_EXP_COMMIT", "not this one")
    assert code_version() == {"commit": commit, "dirty": dirty}


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize("top", ["/", None])
def test_commit_without_a_checkout_is_what_the_environment_says(monkeypatch, top):
    # Installed into some other project's environment, or no git at all.
    use_git(monkeypatch, {"rev-parse --show-toplevel": top, "ls-files __init__.py": ""})
    monkeypatch.setenv("ASAP_EXP_COMMIT", "abc123")
    assert code_version() == {"commit": "abc123", "dirty": None}
    monkeypatch.delenv("ASAP_EXP_COMMIT")
    assert code_version() == {"commit": None, "dirty": None}


def use_git(monkeypatch, answers):
    """Make git answer with `answers`, by the start of its arguments; None removes git."""

    def run(command, **options):
        arguments = " ".join(command[3:])
        answer = next(text for start, text in answers.items() if arguments.startswith(start))
        if answer is None:
            raise FileNotFoundError("git")
        return manifest_module.subprocess.CompletedProcess(command, 0, stdout=f"{answer}\n")

    monkeypatch.setattr(manifest_module.subprocess, "run", run)


def test_looking_for_a_teacher_reads_each_manifest_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newest = (
        fake_run(tmp_path),
        fake_run(tmp_path, "seed=1", ended="2026-02-01T00:00:00+00:00"),
    )
    read: list[Path] = []

    def counted(kind: type, file: Path) -> object:
        read.append(file)
        return typed.read(kind, file)

    monkeypatch.setattr(runs, "read", counted)
    assert find_teacher(paths(tmp_path), None, None) == newest
    assert sorted(read) == sorted(run.path / "manifest.json" for run in (older, newest))
