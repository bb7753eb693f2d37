"""Maps that stand for ASAP on the paper's page: of which calibration, and how many of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import Row
from asap_exp.core.records.words import map_settings, other_label
from asap_exp.report.groups import Group, data_hash
from asap_exp.report.paper_tasks import ASAP, rows_of

STEPS = ("ridge", "learned_slices", "end_to_end")
"""Calibration steps from the paper's own to the one that the project recommends."""


@dataclass(frozen=True)
class Measured:
    """Row of a method, and the record that it is of."""

    record: EvaluationRecord
    row: Row


def with_better_maps(group: Group, others: Iterable[Group]) -> Group:
    """Return the records of a column with those whose maps stand for ASAP in it.

    Of all records of the same teachers and the same test samples: those calibrated by the step that
    comes last in `STEPS`, then with most maps that differ in the seed of their calibration alone,
    then its own. No accuracy has a say in it.
    """
    alike = [other for other in others if covers(other, group) and has_asap(other)]
    best = max(
        alike, key=lambda other: (*standing(other), other is group, other.slug), default=group
    )
    return group if best is group else replace(group, better=best)


def covers(other: Group, group: Group) -> bool:
    """Return True if `other` is of every teacher of `group`, tested on the same samples."""
    return teachers(group) <= teachers(other)


def teachers(group: Group) -> set[tuple[str, str, str]]:
    return {(r.run, r.artifact.teacher_sha256, data_hash(r)) for r in group.records}


def has_asap(group: Group) -> bool:
    """Return True if the layers became maps of ASAP, chosen by no budget."""
    artifact = group.first.artifact
    return other_label(artifact) is None and artifact.budget is None


def standing(group: Group) -> tuple[int, int]:
    """Return the place of the last step of the calibration, and the number of maps."""
    steps = group.first.artifact.calibration.steps or STEPS[:1]
    places = [STEPS.index(step) for step in steps if step in STEPS]
    return max(places, default=-1), len(own_maps(group.first))


def own_maps(record: EvaluationRecord) -> list[Row]:
    """Return the rows of the record's map and of those that differ in their seed alone."""
    point = record.maps.get("asap")
    return [
        row
        for row in record.rows
        if row.key == "asap"
        or (point is not None and row.key in record.maps and record.maps[row.key].key == point.key)
    ]


def measured(group: Group, name: str) -> list[list[Measured]]:
    """Return the rows of a method of each record that has it.

    That is one row; but where a group is of a single teacher, ASAP has each of `own_maps`.
    """
    found = []
    for record in group.records:
        source = map_record(group, record) if name == ASAP else record
        row = rows_of(source).get(name)
        if row is None:
            continue
        several = name == ASAP and len(group.records) == 1
        rows = own_maps(source) if several else [row]
        found.append([Measured(source, each) for each in rows])
    return found


def map_record(group: Group, record: EvaluationRecord) -> EvaluationRecord:
    """Return the record whose map stands for ASAP beside the other methods of `record`."""
    if group.better is None:
        return record
    (found,) = (better for better in group.better.records if better.run == record.run)
    return found


def map_words(group: Group) -> str:
    """Describe the map of a column: its settings, and the seeds of its calibration."""
    shown: Sequence[EvaluationRecord] = [map_record(group, record) for record in group.records]
    artifact = shown[0].artifact
    if not has_asap(group.better or group):
        return ""
    seeds = {str(record.artifact.calibration.seed) for record in shown}
    maps = len(own_maps(shown[0])) if len(shown) == 1 else 1
    words = f"mean of {maps} calibration seeds" if maps > 1 else f"calibration seed {min(seeds)}"
    return f"{map_settings(artifact).label.removeprefix('ASAP, ')}; {words}"
