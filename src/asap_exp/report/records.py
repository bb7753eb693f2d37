"""Evaluation records as JSON: written whole, read checked, gathered out of run directories."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asap_exp.core.config import PathsConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.runs import Run, all_runs, check_task, stage_finished
from asap_exp.core.sealed import SEAL, sealed
from asap_exp.core.typed import check_format, from_json, made, to_json
from asap_exp.report.readable import readable

FORMAT = 2
"""Records of format 1 are older than seals; one that carries a seal all the same is held to it."""

AGAIN = "python -m asap_exp.evaluate"

STAGES = ("train", "distill", "evaluate")
"""Whose manifests a record carries."""


def record_from_json(value: Any, file: Path) -> EvaluationRecord:
    """UserError where it is no record, was changed, or lacks a manifest of a finished stage."""
    check_format(value, FORMAT, file, "evaluation record")
    version = value.get("format")
    if isinstance(version, bool) or version not in (1, FORMAT):
        raise UserError(f"{file} is no evaluation record of this version (format {FORMAT})")
    manifests = value.get("manifests")
    there = manifests if isinstance(manifests, dict) else {}
    check_manifests([stage for stage in STAGES if stage not in there], file)
    if version == FORMAT and SEAL not in value:
        raise UserError(f"{file} is damaged: {SEAL} is missing. Make it again with: {AGAIN}")
    record = from_json(EvaluationRecord, value, file, AGAIN)
    stages = {stage: getattr(record.manifests, stage) for stage in STAGES}
    check_manifests([stage for stage, said in stages.items() if not said.finished], file)
    return record


def check_manifests(missing: list[str], file: Path) -> None:
    if missing:
        raise UserError(
            f"{file} has no manifest of {', '.join(missing)} that says finished: a number without "
            "one is not reported"
        )


def write_record(file: Path, content: Mapping[str, Any]) -> EvaluationRecord:
    """Seals and writes a record, if it is one that can be read."""
    value = sealed(to_json(content))
    made(EvaluationRecord, value, file)
    record = record_from_json(value, file)
    write_json(file, value)
    return record


def load_records(folder: Path, *, strict: bool = False) -> list[EvaluationRecord]:
    """In order of name; a damaged one is left out with a warning, or, if `strict`, refused."""
    return readable(record_files(folder), read_record, strict=strict)


def record_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def read_record(file: Path) -> EvaluationRecord:
    return record_from_json(read_json(file), file)


def gather(paths: PathsConfig, task: str | None, run: str | None, folder: Path) -> list[Path]:
    """Copies the record of every finished evaluation into `folder`; returns what it copied.

    One that is damaged is left out with a warning; of a `run` that was named it is a UserError.
    """
    runs = all_runs(paths, task) if run is None else [run_of_task(Path(run), task)]
    sources = {file: each for each in runs for file in evaluations(each)}
    found = readable(sources, lambda f: named(f, sources[f]), strict=run is not None)
    # Not while they are read: that a copy cannot be written is no damage of its record.
    return [copied(value, folder / name) for name, value in found]


METRICS = "metrics.json"


def evaluations(run: Run) -> list[Path]:
    """The records of the evaluations of `run`, missing ones of finished evaluations too."""
    folders = sorted(run.path.glob("evaluate/*"))
    return [f / METRICS for f in folders if (f / METRICS).is_file() or stage_finished(f)]


def copied(value: Any, target: Path) -> Path:
    write_json(target, value)
    return target


def named(source: Path, run: Run) -> tuple[str, Any]:
    """A record of `run` and the name of its copies; UserError where it is another run's."""
    value = read_json(source)
    record = record_from_json(value, source)
    if record.run != run.name:
        raise UserError(
            f"{source} is of the run {record.run} and not of {run.name}; remove it, or make it "
            f"again with: {AGAIN} teacher={run.path}"
        )
    return f"{record.run.replace('/', '-')}-{source.parent.name}.json", value


def run_of_task(path: Path, task: str | None) -> Run:
    """The run at `path`; UserError where there is none, or it is of another task."""
    run = Run(path)
    check_task(run, task)
    return run
