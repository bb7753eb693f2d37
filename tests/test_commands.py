"""The commands of the README, as a user types them."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.calibration.config import with_settings
from asap_exp.core import sweep
from asap_exp.core.app import help_text
from tests.documents import (
    README,
    ROOT,
    SCHEMAS,
    blocks,
    check_command,
    check_link,
    commands,
    links,
)
from tests.stages import CALIBRATION, EVALUATION, SINKHORN, TINY
from tests.wandb_file import artifacts


def stage(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"asap_exp.{name}", *arguments],
        cwd=cwd,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_readme_has_the_commands_that_were_asked_for() -> None:
    found = commands(README)
    assert "make train task=cifar" in found
    assert "python -m asap_exp.distill +layer=frozen" in found


@pytest.mark.parametrize("command", commands(README))
def test_readme_command_is_one(command: str) -> None:
    check_command(command)


@pytest.mark.slow
def test_readme_snippet_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the number of updates, which takes the time."""
    (snippet,) = blocks(README, "python")
    monkeypatch.chdir(tmp_path)
    for step in with_settings().values():
        monkeypatch.setattr(step, "settings", replace(step.settings, updates=5))
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert {file.name for file in Path("compiled").iterdir()} == {"asap.json", "asap.safetensors"}
    assert set(names["drift"]) == {"blocks.0.attn", "blocks.1.attn"}
    logits = names["exported"].module()(names["batches"][0])
    assert torch.allclose(logits, names["compiled"](names["batches"][0]), atol=1e-5)


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_readme_links_lead_somewhere() -> None:
    assert "results/tables.md" in links(README)
    for link in links(README):
        check_link(README, link)


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("help", "setup", "demo", *SCHEMAS, "test", "lint"):
        assert re.search(rf"make {target} +\w", shown.stdout), target


def made(*words: str) -> subprocess.CompletedProcess:
    # These tests may run below another make, which hands its own arguments on.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-n", *words]
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [
        ("task=cifar", "debug=fast"),
        ("task=cifar", "+layer=frozen", "++model.dim=32", "hydra/launcher=joblib"),
        ("paths.results=/a b", "logger.tags=[x,'y']", 'data.root="c"', "seed=0,1"),
        ("a=$HOME", "b=$(shell touch pwned)`id`; x", "c=d=e#f", "g='~/h'"),
    ],
)
def test_make_passes_every_key_to_a_stage_as_it_was_typed(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    done = made("train", *words, "ARGS=-m recipe.epochs=2")
    *_, given = done.stdout.strip().split("-m asap_exp.train ")
    *passed, multirun, epochs = shlex.split(given)
    assert set(passed) == set(words)
    assert (multirun, epochs) == ("-m", "recipe.epochs=2")
    assert not (ROOT / "pwned").exists()


def test_make_passes_keys_to_reproduce() -> None:
    assert "reproduce.py imdb" in made("reproduce", "row=imdb").stdout
    (line,) = (
        x for x in made("reproduce", "task=digits", "seed=1").stdout.splitlines() if "'" in x
    )
    assert "'seed=1'" in line
    assert "'task=digits'" not in line


@pytest.mark.parametrize("goal", ["setup", "demo", "train"])
def test_make_takes_an_index_of_torch_with_any_target(goal: str, tmp_path: Path) -> None:
    done = made(goal, "TORCH_INDEX=https://a.test/cpu", f"VENV={tmp_path}")
    assert 'TORCH_INDEX="https://a.test/cpu" sh scripts/setup.sh' in done.stdout
    assert "'TORCH_INDEX" not in done.stdout


def test_make_refuses_what_it_would_not_pass_on() -> None:
    bad = made("test", "seed=1")
    assert bad.returncode == 2
    assert 'make test does not know seed: give its arguments as ARGS="..."' in bad.stderr


@pytest.mark.slow
def test_multirun_gives_every_seed_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on after a job that was a mistake, which it names and does not forget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep.Ledger, "folder", None)
    monkeypatch.setenv(sweep.LEDGER, "of the sweep")
    words = ["-m", *TINY, *SINKHORN, "recipe.epochs=2", "seed=0,-1,1"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("asap_exp.train", run_name="__main__")
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert "error: seed=-1 is not allowed" in err
    jobs = re.findall(r"^== job (\d): .* (seed=\S+)$", out, flags=re.MULTILINE)
    assert jobs == [("0", "seed=0"), ("1", "seed=-1"), ("2", "seed=1")]
    manifests = sorted((tmp_path / "results" / "runs").rglob("manifest.json"))
    assert [json.loads(m.read_text())["seed"] for m in manifests] == [0, 1]
    assert not list(tmp_path.glob("*.log")), "Hydra must leave nothing of its own in the folder"


ONE_AFTER_ANOTHER = """
import json, runpy, sys

for name, words in json.loads(sys.argv[1]).items():
    sys.argv = [name, *words]
    runpy.run_module(f"asap_exp.{name}", run_name="__main__")
"""


@pytest.mark.slow
def test_stages_find_each_other_and_share_a_wandb_group(tmp_path: Path) -> None:
    """With the default logger, and no argument that says what to take; in one process."""
    small = {
        "train": [*TINY, *SINKHORN, "recipe.epochs=2"],
        "distill": ["+layer=frozen", *CALIBRATION],
        "evaluate": [*EVALUATION],
    }
    arguments = {
        name: [word for word in words if not word.startswith("logger=")]
        for name, words in small.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(arguments)],
        cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "Finished: results/runs/digits/vit-sinkhorn/",
        "Teacher: results/runs/digits/",
        "Compiled map: results/runs/digits/",
    ):
        assert words in done.stdout
    # Two stages may begin within the second that is part of their folders' names.
    files = sorted(
        tmp_path.rglob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns
    )
    assert len(files) == 3
    content = [file.read_bytes() for file in files]
    group = next(tmp_path.rglob("manifest.json")).parent
    name = "-".join(group.parts[-3:])
    for job_type in ("train", "distill", "evaluate"):
        assert any(f"{name}-{job_type}".encode() in data for data in content), job_type
    check_lineage(files)


def check_lineage(files: list[Path]) -> None:
    """Check that what a stage made is what the next ones used, for train, distill and evaluate."""
    made: dict[str, str] = {}
    used: list[list[str]] = []
    for file in files:
        found = artifacts(file)
        known = {a.name: a.digest for a in found if a.use_after_commit}
        assert all(made[name] == known[name] for name in made.keys() & known.keys())
        used.append(sorted(a.type for a in found if a.use_after_commit))
        made |= {a.name: a.digest for a in found if not a.use_after_commit}
        assert all(a.user_created == a.use_after_commit for a in found)
    assert used == [["dataset"], ["dataset", "model"], ["dataset", "map", "model"]]
    assert [name.split("-")[0] for name in made] == ["teacher", "map", "evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("task=digits", "++recipe.epoch=3"), "recipe.epoch=3: there is no key epoch below recipe"),
        (("task=digits", "seed=-1"), "seed=-1 is not allowed"),
    ],
)
def test_mistake_is_a_sentence_and_not_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = stage("train", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_stage_is_a_command(name: str, tmp_path: Path) -> None:
    done = stage(name, "--help", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, help_text(name) + "\n")


def test_help_shows_keys_and_groups(tmp_path: Path) -> None:
    done = stage("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "seed: 0" in done.stdout
    assert re.search(r"task: .*cifar.*digits.*imdb", done.stdout)


@pytest.mark.slow
def test_help_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path) -> None:
    """As in `--help | head`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "asap_exp.train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_the_groups_of_the_stage_alone() -> None:
    groups = {
        name: set(re.findall(r"^  (\w+): .*\w", help_text(name).split("# Groups")[1], re.MULTILINE))
        for name in SCHEMAS
    }
    assert groups["distill"] == {"calibration", "layer", "logger", "experiment"}
    assert groups["evaluate"] == {"logger", "experiment"}
    assert groups["report"] == groups["benchmark"] == set()
    own = {"task", "data", "model", "attention", "experiment", "debug"}
    assert groups["train"] == own | {"logger"}


HEAVY = ("torch", "triton", "lightning", "wandb", "pandas", "pydantic")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--help",), 0),
        (("task=digits", "--cfg", "job"), 0),
        (("task=digits", "model.dimm=3"), 2),
        (("task=digits", "seed=-1"), 2),
        (("task=digits", "attention.num_iters=0"), 2),
        (("task=cifra",), 2),
        (("task=digits", "data.name=digit"), 2),
        (("task=digits", "model.heads=5"), 2),
        (("task=digits", "attention=asap"), 2),
    ],
)
def test_nothing_heavy_is_imported_before_the_configuration_is_right(
    tmp_path: Path, arguments: tuple[str, ...], status: int
) -> None:
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('LOADED', *[m for m in {HEAVY} if m in sys.modules]))\n"
        f"sys.argv = ['train', *{arguments}]\n"
        "runpy.run_module('asap_exp.train', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.slow
def test_missing_task_lists_the_tasks(tmp_path: Path) -> None:
    done = stage("train", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: task must be set: give task=NAME, one of ")
    assert {"cifar", "digits"} <= set(re.findall(r"\w+", done.stderr))
