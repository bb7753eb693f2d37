"""Outcome of each job of a sweep, for every launcher and process."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from asap_exp.core.failures import explained
from asap_exp.core.files import read_json, write_json, write_text
from asap_exp.core.interruption import Interrupted, interruptible

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


class Ledger(Callback):
    """Hydra callback that sets the folder into which the jobs of this sweep write."""

    folder: ClassVar[Path | None] = None
    """Folder of the sweep; set only in the process that started it."""

    has_workers: ClassVar[bool] = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Ledger.has_workers = by_joblib(config.hydra)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        Ledger.folder = (Path(config.hydra.sweep.dir).expanduser() / name).resolve()
        os.environ[LEDGER] = str(Ledger.folder)


def by_joblib(hydra: Any) -> bool:
    """Return True if the jobs run in local processes that end with the sweep."""
    return "joblib" in str(hydra.launcher.get("_target_", ""))


def attempt(stage: str, work: Callable[[], object]) -> int:
    """Run `work`, the job of this process, and return its exit status.

    The status is 2 after a UserError, or an error that can be explained as one; its sentence is
    printed and the other jobs of a sweep go on. Other errors propagate. In a sweep the outcome is
    recorded first.
    """
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    if in_sweep:
        print(f"\n== job {hydra.job.num}: {' '.join(hydra.overrides.task)}", flush=True)
    status, error, trace = 0, "", ""
    ledger = Path(os.environ[LEDGER]) if in_sweep and LEDGER in os.environ else None
    try:
        if ledger is not None and (ledger / STOPPED).is_file():
            status, error = int((ledger / STOPPED).read_text()), "not started: sweep was stopped"
        elif ledger is not None and Ledger.folder is None:
            with interruptible():  # the launcher's process handles no signals
                work()
        else:
            work()
    except Interrupted as stop:
        status, error = stop.exit_status, str(stop)
        if ledger is None or Ledger.folder is not None or not by_joblib(hydra):
            raise
        # In a worker, raising would make joblib kill the others, which are also saving. Jobs of a
        # queue stop and are requeued individually.
        write_text(ledger / STOPPED, str(status))
    except Exception as raised:
        sentence = explained(raised, stage)
        if sentence is None:
            status, error = CRASH, f"{type(raised).__name__}: {raised}"
            trace = traceback.format_exc()
            raise
        status, error = MISTAKE, str(sentence)
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    finally:
        if ledger is not None:
            write_down(hydra, ledger, status, error, trace)
    return status


def write_down(hydra: HydraConf, folder: Path, status: int, error: str, trace: str) -> None:
    """Write the outcome of a job, and its traceback if there is one."""
    logs = [*launcher_logs()]
    if trace:
        log = folder / f"{hydra.job.num}.log"
        write_text(log, trace)
        logs.append(str(log))
    job = Job(
        number=hydra.job.num,
        overrides=list(hydra.overrides.task),
        status=status,
        error=error,
        logs=logs,
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
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, number)
    return bool(found)


def workers(process: int) -> list[int]:
    """Return the child processes of `process`, as Linux lists them."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    with contextlib.suppress(OSError):
        return [int(child) for each in lists for child in each.read_text().split()]
    return []


def jobs() -> list[Job]:
    """Return the ended jobs of this process's sweep, by number; none outside a sweep."""
    if Ledger.folder is None:
        return []
    files = Ledger.folder.glob("*.json")
    return sorted((Job(**read_json(file)) for file in files), key=lambda job: job.number)


def report_failures(ended: list[Job]) -> None:
    """Print which jobs of a sweep failed, why, and where their logs are."""
    failed = [job for job in ended if job.status]
    if not failed:
        return
    lines = [f"\n{len(failed)} of {len(ended)} jobs failed or were stopped:"]
    for job in failed:
        lines.append(f"  job {job.number} ({' '.join(job.overrides)}): {job.error}")
        lines += [f"    log: {log}" for log in job.logs]
    print("\n".join(lines), file=sys.stderr, flush=True)


def exit_status(ended: list[Job]) -> int:
    """Return the status of the sweep: that of a failed job, if possible not a UserError's."""
    statuses = {job.status for job in ended if job.status}
    return next(iter(sorted(statuses, key=lambda status: (status == MISTAKE, status))), 0)
