"""Records of training steps: written into run directories, then copied to `records/steps/`."""

from pathlib import Path

from asap_exp.core.config import PathsConfig
from asap_exp.core.records.steps import StepRecord
from asap_exp.core.records.store import RecordKind, gathered_by_name

FORMAT = 1
STEPS = RecordKind(
    StepRecord,
    "record of training steps",
    "python -m asap_exp.benchmark mode=step",
    FORMAT,
    lambda value: {"benchmark": value.get("manifest")},
)
write_record, load_records = STEPS.write, STEPS.load


def folder_of(paths: PathsConfig, name: str) -> Path:
    """Return RESULTS/runs/steps/NAME: manifest.json, and metrics.json or, until then, rows/."""
    return paths.runs / "steps" / name


def gather(paths: PathsConfig, folder: Path) -> list[Path]:
    """Copy the record of every finished measurement into `folder`; return the copies.

    A damaged one is left out with a warning.
    """
    sources = sorted(folder_of(paths, "*").parent.glob("*/metrics.json"))
    return gathered_by_name(STEPS, sources, folder)
