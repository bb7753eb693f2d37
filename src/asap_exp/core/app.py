"""Entry point shared by the command lines of all stages."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from asap_exp.core.command_line import PROGRAM, start_again, typed
from asap_exp.core.conf_files import COMMON, conf_dir, group_folders, options
from asap_exp.core.console import fail, is_quiet, quiet, shown
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted, interruptible
from asap_exp.core.locations import check_can_be_made
from asap_exp.core.ranks import PARENT, said_by_first

MULTIRUN = ("-m", "--multirun")
"""Flags that make a sweep of a command."""

VERBOSE = ("-v", "--verbose")
"""Flags that print debug output; all other flags are Hydra's."""


def main(stage: str, schema: type, run: Callable[[Any], object]) -> None:
    """Run `python -m asap_exp.STAGE OVERRIDES`: compose, check and run, then exit with a status.

    The status is 0 if done, 2 after a UserError, which is printed as a sentence, 1 after any other
    error, and 128 + SIGNAL if stopped by a signal. A sweep exits with the status of its failed jobs
    and lists them at the end.
    """
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        try:
            print(help_text(stage), flush=True)
        except BrokenPipeError:  # `--help | head`; nor shall Python's flush at the end complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    # Figures are written to files. Lightning imports matplotlib, which fails if MPLBACKEND names
    # a notebook's backend that is not installed here.
    os.environ["MPLBACKEND"] = "Agg"
    # Exchanges that fail because another rank has ended would print frames of C++.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # So would the profiler's own library, and on a CPU an error about the GPU that is not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if PARENT in os.environ:
        quiet(f"rank {os.environ.get('LOCAL_RANK')}")
    try:
        with typed(stage, words), interruptible(passed_on) as stop:
            try:
                status = application(stage, schema, run, words)
            except (Exception, SystemExit):
                stop.obey()  # a library may have turned the signal into an error
                raise
    except UserError as error:
        if not said_by_first(error):
            fail(str(error))
        status = 2
    except Interrupted as stop:
        if not is_quiet():
            saved = "" if stop.saved is None else shown(stop.saved)
            fail(f"{stop}; {start_again(stage, words, saved)}")
        status = stop.exit_status
    except Exception as error:
        status = ended_by(error, stage)
    if status:
        sys.exit(status)


def ended_by(error: Exception, stage: str) -> int:
    """Print what ended a stage, and return its status: a sentence if the machine is the cause."""
    from asap_exp.core.failures import explained

    sentence = explained(error, stage)
    status = 1 if sentence is None else 2
    if said_by_first(error):
        return status
    if sentence is not None:
        fail(str(sentence))
        return status
    error = error.with_traceback(without_hydra(error.__traceback__))
    if is_quiet():
        fail("".join(traceback.format_exception(error)))
    else:
        traceback.print_exception(error)
    return status


def passed_on(number: int) -> bool:
    """Return True if a sweep has begun and its workers have received the signal."""
    sweep = sys.modules.get("asap_exp.core.sweep")
    return sweep is not None and sweep.pass_on(number)


def application(stage: str, schema: type, run: Callable[[Any], object], words: list[str]) -> int:
    """Return the status of the Hydra application.

    Slow imports are delayed until signals are handled.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from asap_exp.core import plugins, sweep
    from asap_exp.core.composing import in_words, parse
    from asap_exp.core.flags import parsed
    from asap_exp.core.overrides import check_overrides
    from asap_exp.core.schema import check_written
    from asap_exp.core.sweep_table import conclude

    refuse_torchrun(stage, words)
    for_us = [word for word in words if word in VERBOSE]
    given = parsed(stage, without(words, for_us), schema)
    overrides = given.overrides
    if not given.shell_completion:
        own = None if given.config_dir is None else Path(given.config_dir)
        overrides = check_overrides(stage, given.overrides, schema, own)
        if {*MULTIRUN} & set(words):
            check_sweep_folder(given.overrides)
    if for_us:
        overrides.append("hydra.verbose=asap_exp")
    statuses: list[int] = []
    modules = plugins.followed()
    shared = shared_by_jobs(words, given.overrides)

    def work(config: DictConfig) -> object:
        for module in modules:  # in a worker's process too
            plugins.follow(plugins.MODULE, module)
        asked: Any = parse(config, schema)
        check_written(asked)
        return run(asked)

    @hydra.main(config_path=str(conf_dir() / stage), config_name=stage, version_base="1.3")
    def job(config: DictConfig) -> float | None:
        with typed(stage, words, sweep.own_words(shared)):
            status, score = sweep.attempt(stage, lambda: work(config))
        statuses.append(status)
        return None if score is None else score.value  # for a sweeper that optimises it

    try:
        with for_hydra([*overrides, *without(words, [*for_us, *given.overrides])]):
            job()
    except HydraException as error:
        raise in_words(error) from error
    finally:
        ended = sweep.jobs()
        conclude(ended)
        sweep.report_failures(ended)
        sweep.remove_checks(ended)
    return sweep.exit_status(ended) or max(statuses, default=0)


def refuse_torchrun(stage: str, words: Sequence[str]) -> None:
    """Raise UserError if torchrun started several processes of what has but one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if stage not in ("train", "distill", "evaluate"):
        raise UserError(
            f"torchrun started several processes, but {stage} works in one; start it without"
        )
    if {*MULTIRUN} & set(words):
        raise UserError(
            "torchrun would start the whole sweep in each of its processes; start it without: "
            "each job then starts its own"
        )


def check_sweep_folder(overrides: Sequence[str]) -> None:
    """Raise UserError if the results folder, where Hydra begins a sweep, cannot be made."""
    from asap_exp.core.overrides import parsed_override

    for override in (parsed_override(each) for each in overrides if "=" in each):
        value = override.value()
        if override.key_or_group == "paths.results" and isinstance(value, str):
            check_can_be_made("paths.results", os.path.expanduser(value))


def shared_by_jobs(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the words that each job of a sweep needs besides its own overrides."""
    from asap_exp.core.overrides import names_module, parsed_override

    flags = without(words, overrides)
    kept = [flag for flag in flags if flag not in MULTIRUN]
    search = [each for each in overrides if each.startswith("hydra.searchpath=")]
    named = [each for each in overrides if "=" in each and names_module(parsed_override(each))]
    sweeps = any(each.lstrip("+").startswith("experiment=") for each in overrides)
    # An experiment may sweep by itself, and would do so once more in a job of it.
    alone = ["hydra.mode=RUN"] if sweeps or not {*MULTIRUN} & set(words) else []
    return [*kept, *search, *named, *alone]


def without(words: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return the words that are left when each of the others is taken out once."""
    left = list(words)
    for other in others:
        left.remove(other)
    return left


@contextmanager
def for_hydra(words: list[str]) -> Iterator[None]:
    """Let Hydra read these arguments, and raise errors, which it would print before an exit."""
    arguments, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [PROGRAM, *words], "1"
    try:
        yield
    finally:
        sys.argv = arguments
        del os.environ["HYDRA_FULL_ERROR"]
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


def without_hydra(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first call after Hydra's own on."""
    own = trace
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
        if name.split(".")[0] == "hydra":
            own = trace
    return own


def help_text(stage: str) -> str:
    """Return the stage's own configuration file, followed by its groups with their options."""
    folder = conf_dir()
    primary = (folder / stage / f"{stage}.yaml").read_text(encoding="utf-8")
    groups = {path.name for path in (folder / stage).iterdir() if path.is_dir()}
    shared = {path.name for path in (folder / COMMON).iterdir() if path.name != "hydra"}
    groups |= {name for name in shared if f"  - {name}:" in primary}
    lines = [
        f"  {group}: {', '.join(options(*group_folders(stage, group)))}" for group in sorted(groups)
    ]
    listed = "\n".join(lines) if lines else "  none"
    return (
        f"{PROGRAM} {stage} [KEY=VALUE ...] [-m KEY=A,B ...]\n\n"
        f"{primary}\n"
        f"# Groups and their options; each is a file below {folder} that explains its keys:\n"
        f"{listed}\n\n"
        "Show what a command would run with: --cfg job. Print more: -v. Hydra's own flags: "
        "--hydra-help"
    )
