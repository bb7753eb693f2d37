"""Figures are files, whatever backend matplotlib is told to use."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

import asap_exp
from asap_exp.report.drawing import image, subplots

PACKAGE = Path(asap_exp.__file__).parent
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NOTEBOOK = "module://matplotlib_inline.backend_inline"


def test_figure_leaves_the_users_backend_alone(monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setitem(matplotlib.rcParams, "backend", "tkagg")
    figure, axes = subplots(2, 1, ncols=2)
    assert len(axes) == 2
    assert image(figure).startswith(b"\x89PNG")
    assert matplotlib.rcParams["backend"] == "tkagg"
    assert plt.get_fignums() == [], "no window knows it"


def test_library_uses_neither_pyplot_nor_a_backend_of_its_own():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "pyplot" not in text, file
        assert "matplotlib.use" not in text, file


@pytest.mark.slow
def test_stage_does_not_mind_the_backend(tmp_path):
    """Report: its figures import matplotlib, as Lightning does in the others."""
    done = subprocess.run(
        [sys.executable, "-m", "asap_exp.report"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": NOTEBOOK},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr.startswith("error: there is no finished training and no evaluation"), (
        done.stderr
    )


def test_scripts_choose_agg_before_they_import_the_package():
    for file in SCRIPTS.glob("*.py"):
        text, chosen = file.read_text(encoding="utf-8"), False
        if "__main__" not in text:  # a module that scripts import
            continue
        for statement in ast.parse(text).body:
            code = ast.unparse(statement)
            chosen |= code == "os.environ['MPLBACKEND'] = 'Agg'"
            assert chosen or not code.startswith(("from asap_exp", "import asap_exp")), file
