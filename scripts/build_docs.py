"""Builds the documentation site strictly, from README.md, docs/, results/ and the docstrings.

Usage: python scripts/build_docs.py          (or: make docs)

A broken link, a formula that cannot be read and a public name without a docstring or a place on
the API pages are mistakes. The site lies in site/ and opens without a server or a network.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
STAGE, SITE = ROOT / "build/docs", ROOT / "site"
COPIED = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "docs/**/*.md",
    "results/*.md",
    "results/*.csv",
    "results/figures/*.png",
    "src/**/README.md",
    "src/**/NOTICE",
)
"""What the pages are and may link to. Places stay, so that a link holds on a code host too."""

API_PAGES = {
    "asap_exp": "docs/api/asap_exp.md",
    "asap_exp.ops": "docs/api/ops.md",
    "asap_exp.attention": "docs/api/attention.md",
}


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    mistakes = undocumented()
    if not mistakes:
        stage()
        build()
        mistakes = missing_from_site()
    if mistakes:
        sys.exit("error: " + "\nerror: ".join(mistakes))
    print(f"Open {SITE / 'index.html'}")


def public_names() -> dict[str, griffe.Module]:
    """The packages whose `__all__` is public, by name, read without importing them."""
    root = griffe.load("asap_exp", search_paths=[ROOT / "src"])
    return {name: root.modules_collection[name] for name in API_PAGES}


def exported(module: griffe.Module) -> list[str]:
    return [str(name) for name in module.exports or []]


def undocumented() -> list[str]:
    """A sentence for each public name that has no docstring."""
    return [
        f"{package}.{name} is public and has no docstring"
        for package, module in public_names().items()
        for name in exported(module)
        if not module.members[name].has_docstring
    ]


def stage() -> None:
    """Copies the pages, and what they show and link to, into a folder of their own."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for pattern in COPIED:
        for file in ROOT.glob(pattern):
            place = STAGE / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)


def build() -> None:
    """Runs Zensical; exits with its messages where anything is wrong."""
    shutil.rmtree(SITE, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        sys.exit("error: the documentation has the mistakes above")


def missing_from_site() -> list[str]:
    """A sentence for each public name that its API page does not show."""
    mistakes = []
    for package, module in public_names().items():
        page = (SITE / API_PAGES[package]).with_suffix(".html")
        shown = set(re.findall(r'id="([\w.]+)"', page.read_text()))
        mistakes += [
            f"{package}.{name} is public and not shown in {API_PAGES[package]}"
            for name in exported(module)
            if f"{package}.{name}" not in shown
        ]
    return mistakes


if __name__ == "__main__":
    main()
