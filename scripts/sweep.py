"""Train, compile and evaluate every combination of settings, and print one table over the seeds.

Usage: python scripts/sweep.py task=digits attention=softmax,sinkhorn seed=0,1,2
       (or: make sweep task=digits attention=softmax,sinkhorn seed=0,1,2)

The words are those of `python -m asap_exp.train`; distill.KEY=VALUE and evaluate.KEY=VALUE are for
the later stages, and hydra/launcher=joblib or slurm runs jobs side by side. What is finished is
left as it is: after an interruption, the same command goes on. Failed jobs are listed at the end,
with their logs. With check=true the trainings are checked and nothing is run.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from hydra.core.override_parser.types import Override
from rows import swept
from sweep_results import Planned, evaluated, map_of, plan, print_results, runs_of

from asap_exp.core.composing import compose, quoted
from asap_exp.core.conf_files import option_file
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.console import counted, say, shown
from asap_exp.core.errors import UserError
from asap_exp.core.failures import STAGES_KEEP, sentences
from asap_exp.core.interruption import Interrupted, interruptible
from asap_exp.core.overrides import parsed_override
from asap_exp.core.runs import Run
from asap_exp.core.sweep import Job, exit_status, jobs_in, report_failures
from asap_exp.distill.config import DistillConfig

LATER = ("distill", "evaluate")
SHARED = ("logger", "paths.results", "data.root", "data.cache", "data.path")
"""Keys, and beginnings of keys, of the training that the later stages take too."""
SET_HERE = {
    "teacher": "the runs of the sweep are compiled; leave it out",
    "artifact": "the maps of the sweep are evaluated; leave it out",
    "task": "all stages take that of the trainings, task=NAME",
    "paths.results": "all stages take that of the trainings, paths.results=FOLDER",
    "check": "check=true checks the trainings, and nothing is run",
    "hydra.sweep.dir": "each stage has a folder of its own in RESULTS/runs/.multirun; leave it out",
}
"""Keys that this command gives to a stage itself, and what to do instead."""
ALONE = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=")
"""Words that an evaluation is not given, since latencies are taken on an idle machine."""


@dataclass
class Words:
    """Words of the command line, by the stage that takes them."""

    train: list[str]
    hydra: list[str]
    later: dict[str, list[str]]

    @property
    def shared(self) -> list[str]:
        keys = (word.lstrip("+").partition("=")[0] for word in self.train)
        pairs = zip(keys, self.train, strict=True)
        return [word for key, word in pairs if key in SHARED or key.startswith("logger.")]

    def of(self, stage: str) -> list[str]:
        """Return the words of a later stage, without those of Hydra."""
        return [*self.shared, *self.later[stage]]


@dataclass
class Sweep:
    """A sweep under way: its words, and the jobs of its stages that have ended."""

    words: Words
    results: Path
    ended: list[Job] = field(default_factory=list)
    status: int = 0

    def run(self, stage: str, words: Sequence[str]) -> None:
        """Run a stage as Hydra's multirun; raise Interrupted if a signal stopped it."""
        folder = self.results / "runs" / ".multirun" / f"{time.strftime('%Y%m%d-%H%M%S')}-{stage}"
        command = [sys.executable, "-m", f"asap_exp.{stage}", "-m"]
        command += [*words, quoted("hydra.sweep.dir", folder)]
        status = wait_for(command)
        jobs = jobs_in(folder)
        self.ended += jobs
        self.status = self.status or status
        if status and not exit_status(jobs):
            raise SystemExit(status)  # the stage has said why, before its first job


def wait_for(command: list[str]) -> int:
    """Run a command and return its status; it gets the signals of this process and saves."""
    # In a session of its own, since a terminal would send it Ctrl-C a second time.
    with subprocess.Popen(command, start_new_session=True) as process:

        def pass_on(number: int) -> bool:
            process.send_signal(number)
            return True

        with interruptible(pass_on) as stop:
            try:
                status = process.wait()
            except Interrupted as again:
                process.send_signal(again.signal)
                process.wait()
                raise
            if stop.signal is not None and status == 128 + stop.signal:
                sys.exit(status)  # the stage has said so
            stop.obey()
    return status


def main() -> None:
    """Run the three stages and print the table."""
    given = parsed()
    with sentences(STAGES_KEEP):
        words = separated(given.overrides)
        combinations = swept(words.train)
        configs(words)  # a mistake in the words of a later stage shows before hours of training
        if any(word.lstrip("+") == "check=true" for word in words.train):
            check = [sys.executable, "-m", "asap_exp.train", "-m", *words.train, *words.hydra]
            sys.exit(wait_for(check))
        planned = [plan(each) for each in combinations]
        sweep = Sweep(words, Path(planned[0].config.paths.results))
        say(f"{counted(len(planned), 'run')}: {' '.join(words.train)}")
        try:
            train(sweep, planned)
            distill(sweep, planned)
            evaluate(sweep, planned)
        finally:
            print_results(planned, configs(words))
            report_failures(sweep.ended)
    sys.exit(sweep.status)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="such as task=digits seed=0,1,2")
    return parser.parse_args()


def separated(overrides: list[str]) -> Words:
    """Sort the words by the stage that takes them."""
    words = Words([], [], {stage: [] for stage in LATER})
    for word in overrides:
        stage, _, rest = word.partition(".")
        if stage in LATER and "=" in rest:
            check_not_set_here(word, rest)
            if len(swept([rest])) > 1:
                raise UserError(f"{word}: a sweep varies settings of the training alone; give one")
            words.later[stage].append(rest)
        else:
            check_not_set_here(word, word if word.startswith("hydra") else "")
            (words.hydra if word.startswith("hydra") else words.train).append(word)
    words.train = [distinct(word) for word in last_of_each(words.train)]
    for word in words.train:
        check_sweeps_not(word)
    for word in words.shared:
        if len(swept([word])) > 1:
            raise UserError(f"{word}: the later stages take it too, and one value alone; give one")
    return words


def check_not_set_here(word: str, override: str) -> None:
    """Raise UserError for an override of a stage that this command gives by itself."""
    key = override.lstrip("+").partition("=")[0]
    if key in SET_HERE:
        raise UserError(f"{word} is not allowed: {SET_HERE[key]}")


def last_of_each(words: list[str]) -> list[str]:
    """Return the words without those whose key is given again: Hydra too takes the last one."""
    last = {word.lstrip("+").partition("=")[0]: place for place, word in enumerate(words)}
    return [words[place] for place in sorted(last.values())]


def distinct(word: str) -> str:
    """Return a word with each of its values once: a run that is named twice is one run."""
    each = [parsed_override(given) for (given,) in swept([word])]
    first: dict[str, Override] = {}
    for value in each:
        first.setdefault(str(value.value()), value)
    if len(first) == len(each):
        return word
    values = (value.get_value_element_as_str() for value in first.values())
    return f"{each[0].key_or_group}={','.join(values)}"


def check_sweeps_not(word: str) -> None:
    """Raise UserError for an experiment whose file has a sweep of its own."""
    key, _, name = word.lstrip("+").partition("=")
    file = option_file("train", "experiment", name) if key == "experiment" else None
    if file is not None and "sweeper:" in file.read_text(encoding="utf-8"):
        raise UserError(
            f"{word} sweeps by itself, and this command by its own words: give those that the file "
            f"varies, {shown(file)}, or run it alone: asap-exp train {word}"
        )


def configs(words: Words) -> tuple[DistillConfig, EvaluateConfig]:
    """Return the configurations of the later stages, but for the run that they take."""
    return (
        compose("distill", words.of("distill"), DistillConfig),
        compose("evaluate", words.of("evaluate"), EvaluateConfig),
    )


def heading(text: str) -> None:
    say(f"\n== {text}")


def train(sweep: Sweep, planned: list[Planned]) -> None:
    """Train every run that is not finished."""
    finished = sum(run is not None for run in runs_of(planned))
    heading(f"1 of 3: train {counted(len(planned), 'run')} ({finished} finished before)")
    if finished < len(planned):
        sweep.run("train", [*sweep.words.train, *sweep.words.hydra])


def distill(sweep: Sweep, planned: list[Planned]) -> None:
    """Compile every finished Sinkhorn teacher that has no such map."""
    asked, _ = configs(sweep.words)
    teachers = [run for each, run in found(planned) if each.compiles]
    missing = [run for run in teachers if map_of(run, asked) is None]
    heading(
        f"2 of 3: compile {counted(len(teachers), 'run')} "
        f"({len(teachers) - len(missing)} finished before)"
    )
    if missing:
        chosen = several("teacher", [run.path for run in missing])
        sweep.run("distill", [*sweep.words.of("distill"), chosen, *sweep.words.hydra])


def evaluate(sweep: Sweep, planned: list[Planned]) -> None:
    """Evaluate every map that has not been evaluated beside the baselines of this sweep."""
    asked, settings = configs(sweep.words)
    maps = [(run, map_of(run, asked)) for each, run in found(planned) if each.compiles]
    there = [(run, folder) for run, folder in maps if folder is not None]
    runs = [run for run in runs_of(planned) if run is not None]
    missing = [folder for run, folder in there if evaluated(run, folder, settings, runs) is None]
    heading(
        f"3 of 3: evaluate {counted(len(there), 'map')} "
        f"({len(there) - len(missing)} finished before)"
    )
    if missing:
        hydra = [word for word in sweep.words.hydra if not word.startswith(ALONE)]
        sweep.run("evaluate", [*sweep.words.of("evaluate"), several("artifact", missing), *hydra])


def found(planned: list[Planned]) -> list[tuple[Planned, Run]]:
    """Return the finished runs of the sweep."""
    pairs = zip(planned, runs_of(planned), strict=True)
    return [(each, run) for each, run in pairs if run is not None]


def several(key: str, paths: Sequence[Path]) -> str:
    """Return the override that sweeps over these paths."""
    return f"{key}=" + ",".join(quoted(key, path).partition("=")[2] for path in paths)


if __name__ == "__main__":
    main()
