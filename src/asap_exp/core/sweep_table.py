"""The table at the end of a sweep: a row per job, best first; also as CSV beside the sweep."""

import csv
import io
from collections.abc import Sequence

from asap_exp.core.console import counted, duration, plain_table, say, show, shown, warn
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_text
from asap_exp.core.overrides import parsed_override
from asap_exp.core.sweep import Job, Ledger

FILE = "sweep.csv"

STOPPED = 128
"""Largest exit status of a job that no signal stopped."""


def conclude(jobs: Sequence[Job]) -> None:
    """Print the table of this process's sweep and write it into its folder."""
    if not jobs or Ledger.folder is None:
        return
    ranked, file = best_first(jobs), Ledger.folder / FILE
    print_table(ranked)
    if Ledger.made:  # a sweep of checks leaves nothing
        seconds = sum(job.score.value or 0 for job in jobs if job.score is not None)
        say(f"One after another they would take about {duration(seconds)} (an estimate)")
        return
    try:
        write_text(file, as_csv(ranked))
    except UserError as error:  # the jobs are done all the same
        warn(str(error))
    else:
        say(f"Table: {shown(file)}")


def best_first(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs by their score; those without one come last, in their order."""

    def rank(job: Job) -> tuple[bool, float]:
        if job.score is None or job.score.value is None:
            return True, job.number
        return False, job.score.value if job.score.lower_is_better else -job.score.value

    return sorted(jobs, key=rank)


def settings(job: Job) -> dict[str, str]:
    """Return the overrides of a job by key, as the stage has them: a path without its quotes."""
    pairs = ((override, *override.partition("=")) for override in job.overrides)
    return {
        key: str(parsed_override(override).value()) if value.startswith(("'", '"')) else value
        for override, key, _, value in pairs
    }


def keys_of(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(key for job in jobs for key in settings(job)))


def varying(jobs: Sequence[Job]) -> list[str]:
    """Return the keys in which jobs differ."""
    found = [settings(job) for job in jobs]
    return [key for key in keys_of(jobs) if len({each.get(key) for each in found}) > 1]


def score_name(jobs: Sequence[Job]) -> str:
    """Return the name of the jobs' score; empty if none has one."""
    return next((job.score.name for job in jobs if job.score is not None), "")


def end_of(job: Job) -> str:
    if job.status > STOPPED:
        return "stopped"
    return "failed" if job.status else "finished"


def print_table(jobs: Sequence[Job]) -> None:
    from rich.markup import escape

    keys, name = varying(jobs), score_name(jobs)
    table = plain_table(f"Sweep of {counted(len(jobs), 'job')}{', best first' if name else ''}")
    for title in ("job", *keys, *([name] if name else []), "seconds", "end"):
        table.add_column(escape(title), justify="right" if title in ("job", "seconds") else "left")
    for job in jobs:
        given = settings(job)
        score = [] if not name else ["" if job.score is None else job.score.text]
        cells = (*(given.get(key, "") for key in keys), *score)
        table.add_row(
            str(job.number), *map(escape, cells), f"{job.seconds:.0f}", escape(end_of(job))
        )
    show(table)


def as_csv(jobs: Sequence[Job]) -> str:
    """Return the table as CSV, with every override and the score as a number."""
    keys, name = keys_of(jobs), score_name(jobs)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["job", *keys, name or "score", "seconds", "status", "error"])
    for job in jobs:
        given, score = settings(job), job.score
        writer.writerow(
            [
                job.number,
                *(given.get(key, "") for key in keys),
                "" if score is None or score.value is None else score.value,
                job.seconds,
                end_of(job),
                job.error,
            ]
        )
    return out.getvalue()
