"""The package of docs/packages.md, installed from a wheel beside this project's own wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from asap_exp.core.files import read_json
from tests.documents import ROOT
from tests.stages import CALIBRATION, EVALUATION, TINY

PAGE = (ROOT / "docs/packages.md").read_text()
BLOCK = re.compile(r"^```\w+ title=\"(\S+)\"\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling to build wheels"),
]


@dataclass(frozen=True)
class Place:
    """Folder in which wheels are installed, and the sources of the own package."""

    target: Path
    package: Path

    def run(self, *words: str, cwd: Path) -> subprocess.CompletedProcess:
        """Run a command that sees what is installed there."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.target),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)


def build(project: Path, out: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)


def install(wheels: Path, target: Path) -> None:
    """Install wheels without their dependencies, with uv or pip, whichever there is."""
    if shutil.which("uv"):
        installer = ["uv", "pip", "install", "--quiet", "--python", sys.executable]
    elif find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "install", "--quiet"]
    else:
        pytest.skip("needs uv or pip to install wheels")
    options = ["--no-deps", "--no-index", "--target", str(target)]
    files = sorted(map(str, wheels.glob("*.whl")))
    subprocess.run([*installer, *options, *files], check=True, capture_output=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("own")
    for path, text in BLOCK.findall(PAGE):
        file = folder / "package" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for project in (ROOT, folder / "package"):
        build(project, folder / "wheels")
    install(folder / "wheels", folder / "site")
    return Place(folder / "site", folder / "package")


def test_package_is_two_files_beside_what_packages_need(place: Place) -> None:
    files = {str(f.relative_to(place.package)) for f in place.package.rglob("*") if f.is_file()}
    assert files == {
        "pyproject.toml",
        "tempered_attention/__init__.py",
        "tempered_attention/conf/train/attention/tempered.yaml",
    }


def test_console_script_of_the_wheel_answers(place: Place, tmp_path: Path) -> None:
    script = str(place.target / "bin/asap-exp")
    words = ("train", "task=digits", "attention=tempered", "--cfg", "job", "-p", "attention")
    done = place.run(sys.executable, script, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sharpness: 2.0" in done.stdout
    shown = place.run(sys.executable, script, "train", "--help", cwd=tmp_path).stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("  attention:"))
    assert "tempered" in line
    assert str(place.target / "asap_exp/conf") in shown


ONE_AFTER_ANOTHER = """
import json, sys
import asap_exp
from asap_exp.__main__ import main

print(asap_exp.__file__)
for words in json.loads(sys.argv[1]):
    sys.argv = ["asap-exp", *words]
    main()
"""


def test_installed_attention_is_trained_compiled_and_evaluated(
    place: Place, tmp_path: Path
) -> None:
    commands = [
        ["train", *TINY, "attention=tempered", "attention.num_iters=4", "attention.sharpness=3"],
        ["distill", *CALIBRATION],
        ["evaluate", *EVALUATION],
    ]
    done = place.run(sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(commands), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(place.target))
    (run,) = (tmp_path / "results/runs/digits/vit-tempered").iterdir()
    manifests = [read_json(file) for file in sorted(run.rglob("manifest.json"))]
    assert {manifest["stage"] for manifest in manifests} == {"train", "distill", "evaluate"}
    for manifest in manifests:
        assert manifest["status"] == "finished"
        (plugin,) = manifest["plugins"]
        assert plugin["name"] == "tempered"
        assert (plugin["distribution"], plugin["version"]) == ("tempered-attention", "0.1")
    (record,) = run.glob("evaluate/*/metrics.json")
    assert [row["key"] for row in read_json(record)["rows"]][:2] == ["teacher", "asap"]
    wrong = ("train", "task=digits", "attention=tempered", "attention.slope=2")
    refused = place.run(sys.executable, "-m", "asap_exp", *wrong, cwd=tmp_path)
    assert refused.returncode == 2
    assert "Its options: attention.num_iters, attention.sharpness" in refused.stderr


def test_package_that_is_not_installed_is_found_by_its_folder(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.package / "tempered_attention", tmp_path / "tempered_attention")
    own = ("--config-dir", "tempered_attention/conf/train", "attention=tempered")
    words = ("train", "task=digits", *own, "attention.sharpness=0")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "asap_exp", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: attention.sharpness=0 is not allowed; it must be above 0\n"
