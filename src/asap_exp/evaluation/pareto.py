"""Accuracy against latency of everything measured on one teacher, and what is dominated there.

Maps that differ in the seed of their calibration alone are one point, with a deviation.
"""

from typing import Any

from asap_exp.evaluation.records import Group, Record, averaged_rows

Point = dict[str, Any]
"""A row of `averaged_rows`, and `dominated_by`: the fastest method that dominates it, or None."""


def has_maps(group: Group) -> bool:
    """Whether all the maps of the teacher were measured, not one alone."""
    return any(record.get("maps") for record in group.records)


def points(group: Group) -> list[Point]:
    """Every timed method on the teacher's weights, from the fastest to the slowest."""
    rows = [
        row
        for row in averaged_rows(group, by=point_of)
        if row["model_ms"] is not None
        and not row["key"].startswith("asap_layer")
        and not row["key"].endswith("_trained")
    ]
    rows.sort(key=lambda row: row["model_ms"]["mean"])
    return [{**row, "dominated_by": dominating(row, rows)} for row in rows]


def point_of(record: Record, row: dict[str, Any]) -> tuple[str, str]:
    """Key and label of the point that `row` is a measurement of."""
    found = record.get("maps", {}).get(row["key"], row)
    return found["key"], found["label"]


def dominating(row: Point, rows: list[Point]) -> str | None:
    """The first of `rows` that is at least as accurate and as fast as `row`, and better in one."""
    mine = standing(row)
    for other in rows:
        theirs = standing(other)
        if theirs != mine and theirs[0] >= mine[0] and theirs[1] <= mine[1]:
            return str(other["label"])
    return None


def standing(row: Point) -> tuple[float, float]:
    """Accuracy and milliseconds of the whole model."""
    return row["accuracy"]["mean"], row["model_ms"]["mean"]


def verdict(group: Group) -> str:
    """Which truncations some map of ASAP is no slower and no less accurate than."""
    rows = points(group)
    maps = [standing(row) for row in rows if row["group"] == "asap"]
    ahead: list[int] = []
    behind: list[int] = []
    for row in rows:
        if row["group"] != "truncated":
            continue
        accuracy, ms = standing(row)
        beaten = any(a >= accuracy and t <= ms for a, t in maps)
        (ahead if beaten else behind).append(int(row["key"].removeprefix("truncated_")))
    tokens = len(group.first["plans"]["plans"]["teacher"])
    return (
        f"At n = {tokens} tokens, Sinkhorn with T' of {counts(ahead)} has a map of ASAP beside it "
        f"that is no slower and no less accurate; with T' of {counts(behind)} it has none."
    )


def counts(updates: list[int]) -> str:
    return ", ".join(map(str, sorted(updates))) or "none of those measured"
