"""The training curves of a run, out of its CSV logs."""

import csv
import math
from collections import defaultdict
from pathlib import Path

from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, reading
from asap_exp.core.runs import Run, repair
from asap_exp.core.sealed import digest

Curves = list[dict[str, float]]
Row = tuple[int | None, dict[str, float]]
"""An epoch, where it says one, and what was logged in it by name."""


def training_curves(run: Path) -> Curves:
    """One row an epoch, with whatever was logged in it (the last value where there are several).

    A resumed run has a log for every attempt; a later attempt's epochs replace an earlier one's.
    Rows that cannot be read are left out, with a warning; a last line that was cut, without.
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
                f"{damaged} rows of {log} are no finite numbers of an epoch and are left "
                "out of the training curves"
            )
        for epoch, values in rows:
            if epoch is not None:
                epochs[epoch] |= values
    return [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]


def own_curves(run: Run) -> Curves:
    """The curves that the training left; empty, with a warning, where they are not as it did.

    Of a run from before they were kept, those in its logs.
    """
    try:
        curves = kept_curves(run)
    except UserError as error:
        warn(f"the record has no training curves: {error}")
        return []
    return training_curves(run.path) if curves is None else curves


def kept_curves(run: Run) -> Curves | None:
    """Those of curves.json; None in a run from before there was that file.

    UserError where they are not as the training left them.
    """
    manifest = run.manifest
    if manifest.curves_sha256 is None:
        return None
    curves = read_json(run.curves)
    if digest({"curves": curves}) != manifest.curves_sha256:
        raise UserError(f"{run.curves} is not as the training left it. {repair(run)}")
    return curves


def logs(run: Path) -> list[Path]:
    """Of every attempt, from the first to the last."""
    found = (run / "logs").glob("version_*/metrics.csv")
    return sorted(
        (file for file in found if file.parent.name[8:].isdecimal()),
        key=lambda file: int(file.parent.name[8:]),
    )


def readable_rows(log: Path) -> tuple[list[Row], int]:
    """The rows of a log, and how many could not be read."""
    with reading(log):
        text = log.read_bytes().decode("utf-8", errors="replace")
    *lines, _ = text.split("\n")  # what follows the last end of a line was cut
    names, *rows = [cells(line) for line in lines] or [[]]
    if not {"epoch", "step"} <= set(names):
        return [], max(len(rows), 1)
    found = [
        row_of(dict(zip(names, row, strict=False))) if len(row) == len(names) else None
        for row in rows
    ]
    kept = [row for row in found if row is not None]
    return kept, len(found) - len(kept)


def cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r")]), [])
    except csv.Error:
        return []


def row_of(cells: dict[str, str]) -> Row | None:
    """None where something in it is no finite number."""
    try:
        numbers = {name: float(cell) for name, cell in cells.items() if cell}
    except ValueError:
        return None
    epoch = numbers.get("epoch")
    if not all(map(math.isfinite, numbers.values())) or (epoch or 0) < 0 or (epoch or 0) % 1:
        return None
    shown = (n for n in numbers if n not in ("epoch", "step") and not n.endswith("_step"))
    return None if epoch is None else int(epoch), {name: numbers[name] for name in shown}
