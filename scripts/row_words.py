"""Words of the command line that contradict what `scripts/reproduce.py` gives to its commands."""

import argparse
from pathlib import Path

from rows import Row

from asap_exp.core.errors import UserError
from asap_exp.core.locations import expanded


def check_results(results: str) -> None:
    """Raise UserError unless --results is a folder or can become one."""
    if not results.strip():
        raise UserError(
            "--results is empty, as from a shell variable that is not set; give a folder, or leave "
            "it out"
        )
    folder = Path(expanded("--results", results))
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"--results {results} is not allowed: {there} is a file; give a folder")


def check_not_set_here(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Raise UserError for a key that a row or an option of the script gives to the trainings."""
    trained = [(word, word) for word in arguments.overrides]
    for baseline in arguments.train:
        trained += [(word, f'--train "{baseline}"') for word in baseline.split()[1:]]
    for row in rows:
        for word, shown in trained:
            check_word(row, word, shown, row.train, starts=bool(row.pretrain))
        for word in arguments.pretrain:
            if key_of(word) != "seed":  # one pre-training may serve all seeds: some rows have it so
                check_word(row, word, f"--pretrain {word}", row.pretrain, starts=False)


def check_word(row: Row, word: str, shown: str, own: list[str], *, starts: bool) -> None:
    """Raise UserError for a word that contradicts the row, whose own words are `own`.

    `shown` is the word as it was typed; with `starts` the training has weights to start from.
    """
    key, value = key_of(word), word.partition("=")[2] or "VALUE"
    listed = value.replace(",", " ")
    if word in own or (key, value) == ("task", row.task):
        return
    advice = {
        "seed": f"a row has seeds of its own; give --seeds {listed}",
        "paths.results": f"it would be that of the trainings alone; give --results {value}",
        "attention": f"a row trains several; give --train {listed}",
        "attention.name": f"a row trains several; give --train {listed}",
        "task": f"{row.name} is of task {row.task}; choose a row of the other, as --task {value}",
        "experiment": f"{row.name} has its own; choose another row, or give single keys",
    }
    if starts:
        advice["init_from"] = f"{row.name} starts from a run that it pre-trains; leave it out"
    if key in advice:
        raise UserError(f"{shown} is not allowed: {advice[key]}")


def key_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
