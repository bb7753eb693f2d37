"""Finished runs whose attention has a dual to distil."""

from pathlib import Path

from asap_exp.attention import SinkhornAttention, attention_class
from asap_exp.core.config import PathsConfig, TrainConfig
from asap_exp.core.console import say, shown
from asap_exp.core.errors import UserError
from asap_exp.core.runs import (
    ASIDE,
    DEFAULT_TASK,
    Run,
    check_task,
    current,
    ended,
    listed,
    sound_runs_with_manifests,
    stage_command,
)

TRIALS = "debug= or trainer.fast_dev_run="


def find_teacher(paths: PathsConfig, task: str | None, teacher: str | None) -> Run:
    """Return the run at `teacher`, or the newest finished Sinkhorn teacher (of `task`); print it.

    A run that was shortened for debugging is taken by its name alone. Raises UserError with the
    command that makes a teacher if there is none.
    """
    if teacher is not None:
        run = Run(Path(teacher))
        check_teacher(run, task)
        say(f"Teacher: {shown(run.path)}")
        return run
    runs = list(sound_runs_with_manifests(paths, task))
    manifests = {run.path: manifest for run, manifest in runs if manifest is not None}
    candidates = [run for run in current(run for run, _ in runs) if has_dual(run.config)]
    whole = [run for run in candidates if run.path in manifests]
    finished = [run for run in whole if not is_trial(run.config)]
    shortened = [run.path for run in whole if is_trial(run.config)]
    if not finished:
        unfinished = [run for run in candidates if run not in whole]
        aside = [by_name(path) for path in manifests if ASIDE.search(path.name)]
        raise UserError(
            f"no finished Sinkhorn teacher{f' of task {task}' if task else ''} in {paths.runs}; "
            f"make one with: {stage_command('train', paths, f'task={task or DEFAULT_TASK}')}"
            + listed("or finish one", [f"{run.path}: {run.unfinished}" for run in unfinished])
            + listed("or take one moved aside", aside)
            + listed(f"or take one that was shortened by {TRIALS}", [*map(by_name, shortened)])
        )
    run = max(finished, key=lambda run: ended(manifests[run.path]))
    say(f"Teacher: {shown(run.path)} (the newest finished{f' of task {task}' if task else ''})")
    if shortened:
        say(f"Not considered, since shortened by {TRIALS}: {', '.join(map(shown, shortened))}")
    return run


def is_trial(config: TrainConfig) -> bool:
    """Return True if a training was cut short only to see whether it runs."""
    return config.debug is not None or bool(config.trainer.fast_dev_run)


def by_name(path: Path) -> str:
    """Return the argument that takes the run at `path`."""
    return f"\"teacher='{shown(path)}'\""


def has_dual(config: TrainConfig) -> bool:
    """Return True if the attention is Sinkhorn's or a subclass of it."""
    return issubclass(attention_class(config.attention["name"]), SinkhornAttention)


def check_teacher(run: Run, task: str | None) -> None:
    """Raise UserError unless `run` is a finished Sinkhorn teacher (of `task`)."""
    check_task(run, task)
    config = run.config
    if not run.finished:
        raise UserError(
            f"{run.path} does not hold a finished teacher; finish it with the command in its "
            "manifest.json (resume=auto continues it)"
        )
    if not has_dual(config):
        raise UserError(
            f"{run.path} was trained with attention={config.attention['name']}; "
            "only a Sinkhorn teacher has a dual to distill"
        )
