"""Reproduce published rows of the results; finished runs are left as they are.

Usage: python scripts/reproduce.py cifar_plain           (or: make reproduce row=cifar_plain)
       python scripts/reproduce.py --task digits         (or: make reproduce task=digits)
       python scripts/reproduce.py --task imdb --dry-run

A row is a file conf/reproduce/ROW.yaml, which lists what it trains (the Sinkhorn teacher, and
baselines with the same recipe and seed), the maps it fits and what it evaluates. Its commands and
the time that its published records took are printed first. Further arguments override the training
configuration; --pretrain overrides that of the pre-training. To train two models in parallel start
the script twice: with --train softmax, and with --train sinkhorn, which also compiles and evaluates
and takes longer. A baseline trained later, as with --train lotformer, has its row once the teacher
is evaluated again, which --train sinkhorn does. Then: python -m asap_exp.report

With check=true the trainings are looked at, as `asap-exp train check=true` does it, and nothing is
run. The maps and evaluations cannot be looked at before there is a teacher.
"""

import argparse
import itertools
import os
from dataclasses import replace
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from row_words import check_not_set_here, check_results
from rows import (
    TEACHER,
    Row,
    attention_overrides,
    command,
    estimate,
    load_row,
    not_recorded,
    published,
    row_names,
    rows_of,
)

from asap_exp.core.composing import compose, quoted
from asap_exp.core.config import EvaluateConfig, TrainConfig
from asap_exp.core.console import counted, duration, say
from asap_exp.core.errors import UserError
from asap_exp.core.failures import STAGES_KEEP, sentences
from asap_exp.core.runs import DEFAULT_TASK, Run, run_directory
from asap_exp.distill.compile_teacher import compile_teacher
from asap_exp.distill.config import DistillConfig
from asap_exp.evaluate.evaluate import evaluate
from asap_exp.train.check import check
from asap_exp.train.trainer import settled, train

PUBLISHED = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Print the commands and the estimated time of the chosen rows, then run them."""
    arguments = parsed()
    with sentences(STAGES_KEEP):
        check_results(arguments.results)
        rows = chosen(arguments)
        check_not_set_here(rows, arguments)
        records = published(PUBLISHED)
        only_check = takes_check(arguments)
        asked = [changed(row, arguments) for row in rows]
        check_trainings(asked, arguments)
        for row, new in zip(rows, asked, strict=True):
            print(f"\n== {row.name}: {words(row, records)}")
            for line in new.commands(attentions(new, arguments)):
                print(f"  {line}")
        print(flush=True)
        if arguments.dry_run:
            return
        if only_check:
            check_rows(asked, arguments)
            return
        for row in asked:
            for seed in row.seeds:
                reproduce(row, seed, arguments)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", nargs="?", help=f"one of {', '.join(row_names())}")
    parser.add_argument("--task", help="every row of this task")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    parser.add_argument("--seeds", nargs="+", help="default: the seeds of the row")
    parser.add_argument("--results", default="results", help="folder for runs (paths.results)")
    parser.add_argument(
        "--train", nargs="+", help="attentions to train; default: the baselines and sinkhorn"
    )
    parser.add_argument("--pretrain", nargs="+", default=[], help="such as recipe.epochs=20")
    parser.add_argument("overrides", nargs="*", help="for the training, such as recipe.epochs=40")
    arguments = parser.parse_intermixed_args()
    if arguments.row and "=" in arguments.row:  # with --task there is no row
        arguments.overrides.insert(0, arguments.row)
        arguments.row = None
    for option in ("seeds", "train"):  # which take every word up to the next option
        words = dict.fromkeys(getattr(arguments, option) or [])  # each once
        arguments.overrides += [word for word in words if is_override(word)]
        setattr(arguments, option, [word for word in words if not is_override(word)])
    arguments.seeds = [whole_number(parser, word) for word in arguments.seeds]
    return arguments


def is_override(word: str) -> bool:
    """Return True of recipe.epochs=1, and False of "coarse attention.tokens=16", a baseline."""
    return "=" in word.partition(" ")[0]


def whole_number(parser: argparse.ArgumentParser, word: str) -> int:
    """Return the seed; end with the parser's message if it is none."""
    if not word.isdecimal():
        parser.error(f"--seeds {word}: give whole numbers that are not negative, such as 0 1 2")
    return int(word)


def chosen(arguments: argparse.Namespace) -> list[Row]:
    """Return the chosen rows in order of name."""
    if (arguments.row is None) == (arguments.task is None):
        both = f" (got the row {arguments.row} and --task {arguments.task})"
        raise UserError(
            f"name a row, one of {', '.join(row_names())}; or all rows of a task by --task TASK "
            "(make reproduce row=ROW, or task=TASK)"
            f"{both if arguments.row else ''}"
        )
    return [load_row(arguments.row)] if arguments.row else rows_of(arguments.task)


def changed(row: Row, arguments: argparse.Namespace) -> Row:
    """Return the row with the seeds and overrides of the command line."""
    return replace(
        row,
        seeds=arguments.seeds or row.seeds,
        train=[*row.train, *arguments.overrides],
        pretrain=[*row.pretrain, *arguments.pretrain] if row.pretrain else [],
    )


def takes_check(arguments: argparse.Namespace) -> bool:
    """Return True if check=true is among the words, and take it out: it is for every training."""
    found: list[str] = []
    for words in (arguments.overrides, arguments.pretrain):
        mine = [word for word in words if word.lstrip("+").partition("=")[0] == "check"]
        words[:] = [word for word in words if word not in mine]
        found += mine
    return bool(found) and compose("train", [f"task={DEFAULT_TASK}", found[-1]], TrainConfig).check


def check_trainings(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Refuse words of the command line that no training can have, before the first one begins.

    The files of rows are known to compose, and would take a second each.
    """
    for word in arguments.overrides:
        if not (is_override(word) or word.startswith("~")):
            raise UserError(
                f"{word} is no override of the training, such as recipe.epochs=40; name one row, "
                "or all of a task by --task TASK (make reproduce row=ROW, or task=TASK)"
            )
    if arguments.pretrain and not any(row.pretrain for row in rows):
        names = ", ".join(row.name for row in rows)
        raise UserError(f"--pretrain: nothing is pre-trained for {names}. Leave it out")
    if not (arguments.train or arguments.overrides or arguments.pretrain):
        return
    for row in rows:
        for attention in attentions(row, arguments):
            for training in filter(None, (row.pretrain, row.train)):
                compose("train", [*attention_overrides(attention), *training], TrainConfig)


def attentions(row: Row, arguments: argparse.Namespace) -> list[str]:
    """Return the attentions to train, baselines first because an evaluation shows existing ones."""
    return arguments.train or [*row.baselines, TEACHER]


def words(row: Row, records: list[dict]) -> str:
    """Describe how long the row takes, and results published by others."""
    known = estimate(row, records)
    parts = [f"no published record says how long it takes: {row.unpublished}".rstrip(": ")]
    if known is not None:
        seeds = f"{known.seeds} seed{'s' if known.seeds > 1 else ''}"
        if known.seeds < len(row.seeds):
            seeds = f"{known.seeds} of {len(row.seeds)} seeds"
        parts = [f"about {known.hours:.1f} h on {known.device} ({seeds})"]
        parts += ["pre-training not counted"] if row.pretrain else []
        missing = not_recorded(row, records)
        parts += [f"not counted, since no record has them: {', '.join(missing)}"] * bool(missing)
    return "; ".join([*parts, *([f"published elsewhere: {row.paper}"] if row.paper else [])])


def check_rows(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Look at every training of the rows and say how long all take; nothing is run or written."""
    shared, seconds, trainings, later = shared_words(arguments), 0.0, 0, 0
    for row in rows:
        for seed, attention in itertools.product(row.seeds, attentions(row, arguments)):
            own = [f"seed={seed}", *attention_overrides(attention)]
            if row.pretrain:
                seconds += checked([*own, *row.pretrain], shared)
            seconds += checked([*own, *row.train], [*shared, *first_weights(row, own, shared)])
            trainings += 2 if row.pretrain else 1
            if attention == TEACHER:
                later += len(row.calibrations) + len(row.evaluations)
    say(f"\nChecked {counted(trainings, 'training')}: about {duration(seconds)} in all")
    if later:
        say(
            f"Not checked: {counted(later, 'command')} of distill and evaluate, which need the "
            "teacher; once it is trained, each of them takes check=true too"
        )


def checked(own: list[str], further: list[str]) -> float:
    """Check one training, under its command, and return the seconds that it would take."""
    say(f"\n{command('train', own)}")
    found = check(compose("train", [*own, *further], TrainConfig)).value
    assert found is not None, "a check estimates the time"
    return found


def first_weights(row: Row, own: list[str], shared: list[str]) -> list[str]:
    """Return the override that names the row's pre-trained run, if there is one by now."""
    if not row.pretrain:
        return []
    config, _ = settled(compose("train", [*own, *shared, *row.pretrain], TrainConfig))
    run = Run(run_directory(config))
    if run.finished:
        return [quoted("init_from", run.path)]
    say("The next one starts from the weights of this one; it is checked with random ones")
    return []


def shared_words(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides that every command takes."""
    return [quoted("paths.results", arguments.results), "logger=csv"]


def reproduce(row: Row, seed: int, arguments: argparse.Namespace) -> None:
    """Train, compile and evaluate a row with one seed of the training."""
    shared = shared_words(arguments)
    for attention in attentions(row, arguments):
        run = trained(row, [f"seed={seed}", *shared, *attention_overrides(attention)])
        if attention == TEACHER:
            finish(row, run, shared)


def trained(row: Row, common: list[str]) -> Run:
    """Return the run of the row, pre-trained first if the row says so."""
    start = []
    if row.pretrain:
        first = train(compose("train", [*common, *row.pretrain], TrainConfig))
        start = [quoted("init_from", first.path)]
    return train(compose("train", [*common, *row.train, *start], TrainConfig))


def finish(row: Row, teacher: Run, shared: list[str]) -> None:
    """Fit every map of the row, and evaluate the last one."""
    for calibration in row.calibrations:
        overrides = [quoted("teacher", teacher.path), *calibration, *shared]
        artifact = compile_teacher(compose("distill", overrides, DistillConfig))
    for evaluation in row.evaluations:
        overrides = [quoted("artifact", artifact), *evaluation, *shared]
        evaluate(compose("evaluate", overrides, EvaluateConfig))


if __name__ == "__main__":
    main()
