"""Training curves of a run, from its CSV logs."""

import csv
import math
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, reading
from asap_exp.core.runs import Run, repair
from asap_exp.core.sealed import digest

Curves = list[dict[str, float]]
Row = tuple[int | None, dict[str, float]]
"""Epoch, if the row has one, and the logged values by name."""


def training_curves(run: Path) -> Curves:
    """Return one row per epoch with everything that was logged in it; the last value wins.

    A resumed run has a log per attempt; epochs of a later attempt replace earlier ones. Unreadable
    rows are left out with a warning; a truncated last line is left out silently.
    """
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    for log in logs(run):
        try:
            rows, damaged = readable_rows(log)
        except UserError as error:
            warn(f"its training curves are left out: {error}")
            continue
        if damaged:
            warn(
                f"{damaged} rows of {log} do not hold finite numbers of an epoch and are left "
                "out of the training curves"
            )
        for epoch, values in rows:
            if epoch is not None:
                epochs[epoch] |= values
    return [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]


def own_curves(run: Run) -> Curves:
    """Return the curves that the training wrote; empty, with a warning, if they have changed.

    For a run from before curves were written to a file, return those in its logs.
    """
    try:
        curves = kept_curves(run)
    except UserError as error:
        warn(f"the record has no training curves: {error}")
        return []
    return training_curves(run.path) if curves is None else curves


def kept_curves(run: Run) -> Curves | None:
    """Return the curves in curves.json; None for a run from before that file existed.

    Raises UserError if they differ from what the training wrote.
    """
    manifest = run.manifest
    if manifest.curves_sha256 is None:
        return None
    curves = read_json(run.curves)
    if digest({"curves": curves}) != manifest.curves_sha256:
        raise UserError(f"{run.curves} was changed after the training. {repair(run)}")
    return curves


def logs(run: Path) -> list[Path]:
    """Return the log of every attempt, from the first to the last."""
    found = (run / "logs").glob("version_*/metrics.csv")
    return sorted(
        (file for file in found if file.parent.name[8:].isdecimal()),
        key=lambda file: int(file.parent.name[8:]),
    )


def readable_rows(log: Path) -> tuple[list[Row], int]:
    """Return the rows of a log, and how many could not be read."""
    found = [cells and row_of(cells) for cells in named_cells(log)]
    kept = [row for row in found if row]
    return kept, len(found) - len(kept)


def logged_points(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Return what every attempt has logged so far, as the step and the values by name.

    What cannot be read is left out: trackers alone want it.
    """
    points = []
    for log in logs(run):
        for row in filter(None, named_cells(log)):
            with suppress(ValueError):
                values = {name: float(cell) for name, cell in row.items() if cell}
                points.append((int(values.pop("step", -1)), values))
    return [point for point in points if point[0] >= 0]


def named_cells(log: Path) -> list[dict[str, str] | None]:
    """Return the cells of each row by name; None for a row that cannot be read."""
    with reading(log):
        text = log.read_bytes().decode("utf-8", errors="replace")
    *lines, _ = text.split("\n")  # text after the last newline was cut off
    names, *rows = [cells(line) for line in lines] or [[]]
    if not {"epoch", "step"} <= set(names):
        return [None] * max(len(rows), 1)
    return [dict(zip(names, row, strict=False)) if len(row) == len(names) else None for row in rows]


def cells(line: str) -> list[str]:
    """Return the cells of a CSV line; empty if it is malformed."""
    try:
        return next(csv.reader([line.rstrip("\r")]), [])
    except csv.Error:
        return []


def row_of(cells: dict[str, str]) -> Row | None:
    """Return the row of these cells, or None if one is not a finite number."""
    try:
        numbers = {name: float(cell) for name, cell in cells.items() if cell}
    except ValueError:
        return None
    epoch = numbers.get("epoch")
    if not all(map(math.isfinite, numbers.values())) or (epoch or 0) < 0 or (epoch or 0) % 1:
        return None
    shown = {name: number for name, number in numbers.items() if is_curve(name)}
    return None if epoch is None else int(epoch), shown


def is_curve(name: str) -> bool:
    """Return True for a result of an epoch: not its place, nor a step, nor the time it took."""
    return name not in ("epoch", "step") and not name.endswith("_step") and name[:5] != "wait/"
