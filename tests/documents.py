"""The README and the pages of docs/: their commands, snippets, headings and links."""

import re
import shlex
from pathlib import Path

from asap_exp.benchmark import route_times
from asap_exp.core.composing import compose
from asap_exp.core.conf_files import conf_dir, options, tasks
from asap_exp.core.config import (
    BenchmarkConfig,
    EvaluateConfig,
    ReportConfig,
    TrainConfig,
)
from asap_exp.distill.config import DistillConfig

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "benchmark": BenchmarkConfig,
}
PROGRAMS = {"benchmark.route_times": route_times.parsed}
"""What reads the words of a command that is no stage."""
ROWS = options(conf_dir() / "reproduce")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of its bash blocks, without comments."""
    lines = [
        line.split(" #")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()
    ]
    return [line for line in lines if line]


def check_command(command: str) -> None:
    """Asserts that a stage's overrides compose, a make target exists, or a script is there."""
    words = shlex.split(command)
    if words[0] == "asap-exp":
        words = ["python", "-m", f"asap_exp.{words[1]}", *words[2:]]
    if words[0] in ("torchrun", "srun"):
        words = ["python", *words[words.index("-m") :]]
    if words[:2] == ["python", "-m"]:
        name = words[2].removeprefix("asap_exp.")
        overrides = [w for w in words[3:] if w not in ("-m", "-v", "--help", "--cfg", "job")]
        if "-m" in words[3:]:
            overrides = [re.split(r",(?![^\[]*\])", override)[0] for override in overrides]
        if name in PROGRAMS:
            PROGRAMS[name](words[3:])
        elif "--help" not in words:
            compose(name, overrides, SCHEMAS[name])
    elif words[0] == "make":
        targets = re.findall(
            r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE
        )
        assert words[1] in targets
        if words[1] == "reproduce":
            kind, _, name = words[2].partition("=")
            assert name in {"row": ROWS, "task": tasks()}[kind]
        if words[1] in SCHEMAS:
            compose(words[1], words[2:], SCHEMAS[words[1]])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        assert words[1] != "scripts/reproduce.py" or words[2] in ROWS
    else:
        assert words[0] == "export"


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """What a link to a heading ends in, on code hosts and on the site alike."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def links(page: Path) -> list[str]:
    """The targets of its links to other files and headings of the project."""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page))


def check_link(page: Path, link: str) -> None:
    """Asserts that the file is there and, if a heading is named, that it has it."""
    name, _, fragment = link.partition("#")
    file = (page.parent / name) if name else page
    assert file.exists(), f"{page.name}: {link}"
    if fragment:
        assert fragment in map(anchor, headings(file)), f"{page.name}: {link}"
