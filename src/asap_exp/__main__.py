"""The command `asap-exp STAGE ...`, or `python -m asap_exp STAGE ...`.

A stage runs as `python -m asap_exp.STAGE` does. Nothing is imported before it is known.
"""

import difflib
import os
import runpy
import sys

from asap_exp import __doc__ as about
from asap_exp import __version__

PROGRAM = "asap-exp"
STAGES = {
    "train": "train a model: one run directory with weights, curves and a manifest",
    "distill": "compile the attention of a trained model to ASAP",
    "evaluate": "measure a compiled model beside its teacher and the controls",
    "report": "make tables, figures and a page from all evaluations and benchmarks",
    "benchmark": "time the attention operators alone",
}
COMPLETION = ("-sc", "--shell-completion")
CONFIG_DIR = ("-cd", "--config-dir")


def main() -> None:
    """Run the stage that the first argument names."""
    words = sys.argv[1:]
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        print(help_text())
    elif first == "--version":
        print(f"{PROGRAM} {__version__}")
    elif first in COMPLETION:
        complete(words)
    elif first in STAGES:
        start(first, words[1:])
    else:
        print(refusal(first), file=sys.stderr)
        sys.exit(2)


def start(stage: str, words: list[str]) -> None:
    """Run `python -m asap_exp.STAGE WORDS` in this process."""
    sys.argv = [PROGRAM, *words]
    sys.path.append(os.getcwd())  # python -m searches it too: for modules that the user names
    runpy.run_module(f"asap_exp.{stage}", run_name="__main__", alter_sys=True)


def complete(words: list[str]) -> None:
    """Complete a command line for a shell, or print the shell's script: `-sc install=bash`.

    The stage is completed here and its arguments by Hydra, which knows no stages.
    """
    if not any(word.startswith("query=") for word in words):
        start("train", words)
        return
    line = os.environ.get("COMP_LINE", "")
    _, *given = line.split() or [PROGRAM]
    if line.endswith(" "):
        given.append("")
    stage, *rest = given or [""]
    if not rest:
        print(" ".join(name for name in STAGES if name.startswith(stage)))
    elif stage in STAGES:
        *others, word = rest
        overrides = [each for each in others if "=" in each and not each.startswith("-")]
        # Hydra completes the keys of a configuration that is complete: one with a task.
        if stage == "train" and not any(each.startswith("task=") for each in rest):
            overrides.append("task=digits")
        os.environ["COMP_LINE"] = " ".join([PROGRAM, *overrides, word])
        start(stage, [*words, *own_files(others)])


def own_files(words: list[str]) -> list[str]:
    """Return the words that name the user's own folder of YAML files."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in CONFIG_DIR:
            return [word, following]
        if word.startswith("--config-dir="):
            return [word]
    return []


def help_text() -> str:
    lines = (f"  {name:10} {what}" for name, what in STAGES.items())
    return (
        f"{about}\n\n"
        f"{PROGRAM} STAGE [KEY=VALUE ...]\n\n" + "\n".join(lines) + "\n\n"
        f"Settings of a stage: {PROGRAM} STAGE --help. Version: {PROGRAM} --version\n"
        f'Completion in bash (or zsh, fish): eval "$({PROGRAM} -sc install=bash)"'
    )


def refusal(word: str) -> str:
    close = difflib.get_close_matches(word, STAGES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"error: {word} is no stage.{hint} Choose one of {', '.join(STAGES)}"


if __name__ == "__main__":
    main()
