"""Finished runs whose attention a calibration can take the place of."""

from pathlib import Path

from asap_exp.attention import Attention, SinkhornAttention, SoftmaxAttention, attention_class
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
    named_run,
    sound_runs_with_manifests,
    stage_command,
)

TRIALS = "debug= or trainer.fast_dev_run="

SINKHORN = SinkhornAttention.name
TEACHERS: dict[str, type[Attention]] = {
    SINKHORN: SinkhornAttention,
    SoftmaxAttention.name: SoftmaxAttention,
}
"""Attentions that a calibration can be fitted to, subclasses included."""
CALIBRATIONS = {SINKHORN: "ridge", SoftmaxAttention.name: "hedgehog"}
"""A calibration for each of them."""


def find_teacher(
    paths: PathsConfig,
    task: str | None,
    teacher: str | None,
    attention: str | None = SINKHORN,
    *,
    exact: bool = False,
) -> Run:
    """Return the run of that name or path, or the newest finished one (of `task`); print it.

    `attention`, of `TEACHERS`, is what it must have; None, for any of them, needs a `teacher`. With
    `exact` the newest is of that one alone, not of a subclass such as Sinkformer's. A run that was
    shortened for debugging is taken by its name alone. Raises UserError with the command that makes
    a teacher if there is none.
    """
    if teacher is not None:
        run = named_run(paths, teacher)
        check_teacher(run, task, attention)
        say(f"Teacher: {shown(run.path)}")
        return run
    assert attention is not None, "the newest of one kind"
    runs = list(sound_runs_with_manifests(paths, task))
    manifests = {run.path: manifest for run, manifest in runs if manifest is not None}
    candidates = [
        run
        for run in current(run for run, _ in runs)
        if teaches(run.config, attention)
        and not (exact and run.config.attention["name"] != attention)
    ]
    whole = [run for run in candidates if run.path in manifests]
    finished = [run for run in whole if not is_trial(run.config)]
    shortened = [run.path for run in whole if is_trial(run.config)]
    if not finished:
        unfinished = [run for run in candidates if run not in whole]
        aside = [by_name(path) for path in manifests if ASIDE.search(path.name)]
        command = [f"task={task or DEFAULT_TASK}"]
        command += [] if attention == SINKHORN else [f"attention={attention}"]
        raise UserError(
            f"no finished {word(attention)} teacher{f' of task {task}' if task else ''} in "
            f"{paths.runs}; make one with: {stage_command('train', paths, *command)}"
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


def word(attention: str) -> str:
    return attention.title() if attention == SINKHORN else attention


def teaches(config: TrainConfig, attention: str = SINKHORN) -> bool:
    """Return True if a training has this attention of `TEACHERS`, or a subclass of it."""
    return issubclass(attention_class(config.attention["name"]), TEACHERS[attention])


def check_teacher(run: Run, task: str | None, attention: str | None = SINKHORN) -> None:
    """Raise UserError unless `run` is a finished teacher (of `task`) with this attention.

    None stands for any of `TEACHERS`.
    """
    check_task(run, task)
    config = run.config
    if not run.finished:
        raise UserError(
            f"{run.path} does not hold a finished teacher; finish it with the command in its "
            "manifest.json (resume=auto continues it)"
        )
    allowed = [attention] if attention is not None else list(TEACHERS)
    if any(teaches(config, each) for each in allowed):
        return
    name = config.attention["name"]
    usable = [CALIBRATIONS[each] for each in TEACHERS if teaches(config, each)]
    instead = f"; for this one take calibration={usable[0]}" if usable else ""
    why = {
        SINKHORN: "only a Sinkhorn teacher has a dual to distill",
        SoftmaxAttention.name: "only a softmax teacher has the weights that this calibration fits",
        None: "only Sinkhorn and softmax teachers are compiled",
    }[attention]
    raise UserError(
        f"{run.path} was trained with attention={name}; {why}. Choose a run trained with "
        f"attention={' or '.join(allowed)}{instead}"
    )
