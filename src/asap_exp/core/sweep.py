"""Outcome of each job of a sweep, for every launcher and process."""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from asap_exp.core.console import counted, fail, prefixed, print_debug, say, shown, warn
from asap_exp.core.failures import explained
from asap_exp.core.files import read_json, write_json, write_text
from asap_exp.core.interruption import Interrupted, interruptible, requeueing
from asap_exp.core.ranks import said_by_first
from asap_exp.core.run_log import run_log
from asap_exp.core.score import Score

LEDGER = "ASAP_EXP_SWEEP"
"""Environment variable with the folder in which the jobs of a sweep record their outcome."""

STOPPED = "stopped"
"""Name of the file in that folder that tells jobs not to begin."""

MISTAKE, CRASH = 2, 1
"""Exit statuses of a UserError, and of any unexpected error."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Outcome of one job; `status` is the exit status it would have had outside a sweep."""

    number: int
    overrides: list[str]
    status: int
    error: str = ""
    logs: list[str]
    seconds: float
    score: Score | None = None


class Ledger(Callback):
    """Hydra callback that sets the folder into which the jobs of this sweep write."""

    folder: ClassVar[Path | None] = None
    """Folder of the sweep; set only in the process that started it."""

    has_workers: ClassVar[bool] = False

    made: ClassVar[list[Path]] = []
    """Folders that a sweep of checks makes, and takes away again."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Ledger.has_workers = launched_by("joblib", config.hydra)
        Ledger.folder = Path(config.hydra.sweep.dir).expanduser().resolve()
        if config.get("check") is True:
            Ledger.made = [f for f in (Ledger.folder, *Ledger.folder.parents) if not f.exists()]
        os.environ[LEDGER] = str(Ledger.folder)
        if launched_by("submitit", config.hydra) and not lacks_slurm(config.hydra):
            logs = Path(str(config.hydra.launcher.submitit_folder)).expanduser().parent
            say(f"The jobs print into files below {shown(logs)}")
        if hides_gpus(config):
            warn(
                "hydra/launcher=submitit_local hides this machine's GPUs from its jobs, which run "
                "on the CPU; hydra.launcher.gpus_per_node=1 gives all of them the first GPU, at "
                "the same time"
            )


def launched_by(name: str, hydra: Any) -> bool:
    """Return True if the launcher is joblib's, whose local processes end with it, or submitit's."""
    return name in str(hydra.launcher.get("_target_", ""))


def lacks_slurm(hydra: Any) -> bool:
    """Return True if the launcher is SLURM's and this machine has none: no job will be started."""
    return launched_by("SlurmLauncher", hydra) and shutil.which("srun") is None


def hides_gpus(config: DictConfig) -> bool:
    """Return True if the jobs could use a GPU, but submitit's local launcher will show them none.

    It sets CUDA_VISIBLE_DEVICES by the number of GPUs that it is told, by default none.
    """
    launcher = config.hydra.launcher
    if not launched_by("LocalLauncher", config.hydra) or launcher.get("gpus_per_node"):
        return False
    if config.get("trainer", config).get("accelerator") == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


@dataclass
class Outcome:
    """How the work of a job ended."""

    status: int = 0
    error: str = ""
    trace: str = ""
    score: Score | None = None


def attempt(stage: str, work: Callable[[], object]) -> tuple[int, Score | None]:
    """Run `work`, the job of this process, and return its exit status and its score.

    The status is 2 after a UserError, or an error that can be explained as one; its sentence is
    printed and the other jobs of a sweep go on. Other errors propagate. In a sweep the outcome is
    recorded first.
    """
    hydra = HydraConfig.get()
    if hydra.verbose:
        print_debug()
    found = Outcome()
    try:
        run_logged(stage, work, hydra, found)
    except Interrupted as stop:
        if stop.signal == requeueing():
            signal.raise_signal(stop.signal)  # now that all is saved, submitit requeues the job
        raise
    return found.status, found.score


def run_logged(stage: str, work: Callable[[], object], hydra: HydraConf, found: Outcome) -> None:
    """Run a job with its log, and in a sweep with its outcome written down."""
    ledger = None
    with ExitStack() as stack:
        if hydra.mode == RunMode.MULTIRUN:
            ledger = Path(os.environ[LEDGER]) if LEDGER in os.environ else None
            if Ledger.folder is None and launched_by("joblib", hydra):
                # The jobs of several workers print at once.
                stack.enter_context(prefixed(f"[job {hydra.job.num}] "))
            else:
                print(flush=True)
        stack.enter_context(run_log(stage))
        if hydra.mode == RunMode.MULTIRUN:
            say(f"== job {hydra.job.num}: {' '.join(overrides_of(hydra))}")
        if ledger is None:
            run_job(stage, work, hydra, None, found)
        else:
            recorded(stage, work, hydra, ledger, found)


def overrides_of(hydra: HydraConf) -> list[str]:
    """Return the overrides of a job, without the pluses that Hydra alone needs."""
    return [override.lstrip("+") for override in hydra.overrides.task]


def own_words(shared: list[str]) -> list[str] | None:
    """Return the words that run this job of a sweep alone; None outside a sweep."""
    hydra = HydraConfig.get()
    return None if hydra.mode != RunMode.MULTIRUN else [*shared, *overrides_of(hydra)]


def recorded(
    stage: str, work: Callable[[], object], hydra: HydraConf, ledger: Path, found: Outcome
) -> None:
    """Run a job of a sweep and write its outcome into the folder of the sweep."""
    started = time.monotonic()
    try:
        run_job(stage, work, hydra, ledger, found)
    finally:
        if not of_another_rank(hydra):
            write_down(hydra, ledger, found, time.monotonic() - started)


def of_another_rank(hydra: HydraConf) -> bool:
    """Return True in a task of SLURM's beside the first, with which it trains one model."""
    return launched_by("submitit", hydra) and os.environ.get("SLURM_PROCID", "0") != "0"


def run_job(
    stage: str,
    work: Callable[[], object],
    hydra: HydraConf,
    ledger: Path | None,
    found: Outcome,
) -> None:
    """Run `work` and note in `found` how it ended; see `attempt`."""
    try:
        if ledger is not None and (ledger / STOPPED).is_file():
            found.status = int((ledger / STOPPED).read_text())
            found.error = "not started: sweep was stopped"
            return
        if ledger is not None and Ledger.folder is None:
            with interruptible():  # the launcher's process handles no signals
                result = work()
        else:
            result = work()
        found.score = result if isinstance(result, Score) else None
    except Interrupted as stop:
        found.status, found.error = stop.exit_status, str(stop)
        if ledger is None or Ledger.folder is not None or not launched_by("joblib", hydra):
            raise
        # In a worker, raising would make joblib kill the others, which are also saving. Jobs of a
        # queue stop and are requeued individually.
        write_text(ledger / STOPPED, str(found.status))
    except Exception as raised:
        sentence = explained(raised, stage)
        if sentence is None:
            found.status, found.error = CRASH, f"{type(raised).__name__}: {raised}"
            found.trace = traceback.format_exc()
            raise
        found.status, found.error = MISTAKE, str(sentence)
        if not said_by_first(raised):
            fail(found.error)


def write_down(hydra: HydraConf, folder: Path, found: Outcome, seconds: float) -> None:
    """Write the outcome of a job, and its traceback if there is one."""
    logs = [*launcher_logs()]
    if found.trace:
        log = folder / f"{hydra.job.num}.log"
        write_text(log, found.trace)
        logs.append(str(log))
    job = Job(
        number=hydra.job.num,
        overrides=overrides_of(hydra),
        status=found.status,
        error=found.error,
        logs=logs,
        seconds=round(seconds, 2),
        score=found.score,
    )
    write_json(folder / f"{hydra.job.num}.json", asdict(job))


def launcher_logs() -> list[str]:
    """Return submitit's log files, since it shows nothing of what its jobs print."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return []
    from submitit import JobEnvironment

    paths = JobEnvironment().paths
    return [str(paths.stdout), str(paths.stderr)]


def pass_on(number: int) -> bool:
    """Send a signal to the workers of this sweep, which save their work; False without workers."""
    found = workers(os.getpid()) if Ledger.has_workers else []
    for worker in found:
        with suppress(ProcessLookupError):
            os.kill(worker, number)
    return bool(found)


def workers(process: int) -> list[int]:
    """Return the child processes of `process`, as Linux lists them."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    with suppress(OSError):
        return [int(child) for each in lists for child in each.read_text().split()]
    return []


def jobs() -> list[Job]:
    """Return the ended jobs of this process's sweep, by number; none outside a sweep."""
    return [] if Ledger.folder is None else jobs_in(Ledger.folder)


def jobs_in(folder: Path) -> list[Job]:
    """Return the ended jobs of the sweep with this folder, by number."""
    found = [read_json(file) for file in folder.glob("*.json")]
    ended = [
        Job(**{**job, "score": None if job["score"] is None else Score(**job["score"])})
        for job in found
    ]
    return sorted(ended, key=lambda job: job.number)


def report_failures(ended: list[Job]) -> None:
    """Print which jobs of a sweep failed, why, and where their logs are."""
    failed = [job for job in ended if job.status]
    if not failed:
        return
    lines = [f"\n{len(failed)} of {counted(len(ended), 'job')} failed or stopped:"]
    for job in failed:
        lines.append(f"  job {job.number} ({' '.join(job.overrides)}): {job.error}")
        lines += [f"    log: {log}" for log in job.logs]
    print("\n".join(lines), file=sys.stderr, flush=True)


def remove_checks(ended: list[Job]) -> None:
    """Take away what a sweep of checks has made, unless a job has a log there."""
    if Ledger.made and not any(job.logs for job in ended if job.status):
        shutil.rmtree(Ledger.made[0], ignore_errors=True)
        with suppress(OSError):  # something else is there by now
            for folder in Ledger.made[1:]:
                folder.rmdir()


def exit_status(ended: list[Job]) -> int:
    """Return the status of the sweep: that of a failed job, if possible not a UserError's."""
    statuses = {job.status for job in ended if job.status}
    return next(iter(sorted(statuses, key=lambda status: (status == MISTAKE, status))), 0)
