"""The command `asap-exp`: stages, completion, version; all without PyTorch."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import asap_exp
from asap_exp.__main__ import STAGES
from asap_exp.core.conf_files import options
from tests.documents import ROOT, SCHEMAS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the console script that an installation makes."""
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["asap-exp"]
    module, _, function = target.partition(":")
    script = tmp_path_factory.mktemp("bin") / "asap-exp"
    script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
    script.chmod(0o755)
    return script.parent


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_stage_is_listed_with_a_line(folder: Path) -> None:
    assert set(STAGES) == set(SCHEMAS)
    printed = run(folder, "asap-exp", "--help")
    assert (printed.returncode, printed.stderr) == (0, "")
    lines = printed.stdout.splitlines()
    assert all(f"  {stage:10} {what}" in lines for stage, what in STAGES.items())
    assert run(folder, "asap-exp").stdout == printed.stdout


def test_version(folder: Path) -> None:
    assert run(folder, "asap-exp", "--version").stdout == f"asap-exp {asap_exp.__version__}\n"


def test_nothing_is_imported_before_the_stage_is_known() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']; from asap_exp.__main__ import main; main(); "
        "print(sorted({'torch', 'hydra', 'rich', 'asap_exp.core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_unknown_stage_is_refused_with_the_nearest(folder: Path) -> None:
    done = run(folder, "asap-exp", "trainn", "task=digits")
    assert done.returncode == 2
    assert done.stderr.startswith("error: trainn is no stage. Did you mean train? Choose one of")


@pytest.mark.parametrize(
    "command", [("asap-exp",), (sys.executable, "-m", "asap_exp")], ids=["script", "module"]
)
def test_stage_runs_as_its_module_does(folder: Path, command: tuple[str, ...]) -> None:
    words = ("train", "task=digits", "model.depth=2", "--cfg", "job")
    done = run(folder, *command, *words)
    module = run(folder, sys.executable, "-m", "asap_exp.train", *words[1:])
    assert done.returncode == 0
    assert done.stdout == module.stdout
    refused = run(folder, *command, "train", "task=cifer")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: task=cifer is not allowed. Did you mean cifar?")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("asap-exp ", [*STAGES]),
        ("asap-exp di", ["distill"]),
        ("asap-exp train rec", ["recipe."]),
        ("asap-exp train -m task=ci", ["task=cifar"]),
        ("asap-exp train task=cifar recipe.l", ["recipe.label_smoothing=", "recipe.lr="]),
        ("asap-exp distill layer=", [f"layer={o}" for o in options(ROOT / "conf/distill/layer")]),
        ("asap-exp nothing ta", []),
    ],
)
def test_arguments_are_completed(folder: Path, line: str, expected: list[str]) -> None:
    done = run(folder, "asap-exp", "-sc", "query=bash", COMP_LINE=line)
    assert done.stdout.split() == expected
    assert done.stderr == ""


def test_options_of_the_own_folder_are_completed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nseed: 3\n")
    line = f"asap-exp train --config-dir {tmp_path} experiment=mi"
    done = run(folder, "asap-exp", "-sc", "query=bash", COMP_LINE=line)
    assert done.stdout.split() == ["experiment=mine"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_shell_completes_after_one_line(folder: Path) -> None:
    script = """
eval "$(asap-exp -sc install=bash)"
complete -p asap-exp
COMP_LINE="asap-exp train task=imd" COMP_POINT=23 COMP_CWORD=2
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = run(folder, "bash", "--norc", "-c", script)
    rule, *choices = done.stdout.splitlines()
    assert rule.endswith("-F hydra_bash_completion asap-exp")
    assert choices == ["task=imdb", "task=imdb_mlm"]


def test_functions_are_listed() -> None:
    assert set(asap_exp.__all__) <= set(dir(asap_exp))
    assert all(callable(getattr(import_module("asap_exp"), name)) for name in asap_exp.__all__)
