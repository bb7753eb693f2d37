"""Build the documentation site strictly, from README.md, docs/, results/ and the docstrings.

Usage: python scripts/build_docs.py          (or: make docs)

Broken links, unreadable formulas, and public names without a docstring or an entry on the API
pages are errors. The site is written to site/ and opens without a server or a network.
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
    "results/*.tex",
    "results/figures/*.png",
    "src/**/README.md",
    "src/**/NOTICE",
)
"""Pages and the files they link to, at the same paths so that links also work on a code host."""

API_PAGES = {
    "asap_exp": "docs/api/asap_exp.md",
    "asap_exp.ops": "docs/api/ops.md",
    "asap_exp.attention": "docs/api/attention.md",
}


def main() -> None:
    """Check the docstrings, build the site and check its API pages; exit with all errors."""
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
    """Return the packages whose `__all__` is public, by name, read without importing them."""
    root = griffe.load("asap_exp", search_paths=[ROOT / "src"])
    return {name: root.modules_collection[name] for name in API_PAGES}


def exported(module: griffe.Module) -> list[str]:
    """Return the names in `__all__` of a module."""
    return [str(name) for name in module.exports or []]


def undocumented() -> list[str]:
    """Return one error for each public name without a docstring."""
    return [
        f"{package}.{name} is public and has no docstring"
        for package, module in public_names().items()
        for name in exported(module)
        if not module.members[name].has_docstring
    ]


def stage() -> None:
    """Copy the pages, and the files they show or link to, to a separate folder."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for pattern in COPIED:
        for file in ROOT.glob(pattern):
            place = STAGE / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)


def build() -> None:
    """Run Zensical; exit with its messages if anything is wrong."""
    shutil.rmtree(SITE, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        sys.exit("error: the documentation has the mistakes above")


def missing_from_site() -> list[str]:
    """Return one error for each public name that its API page does not show."""
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
