"""The training curves of a run, out of its CSV logs."""

import csv
from collections import defaultdict
from pathlib import Path


def training_curves(run: Path) -> list[dict[str, float]]:
    """One row an epoch, with whatever was logged in it (the last value where there are several).

    A resumed run has a log for every attempt; a later attempt's epochs replace an earlier one's.
    """
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    logs = sorted(run.glob("logs/version_*/metrics.csv"), key=lambda f: int(f.parent.name[8:]))
    for log in logs:
        with log.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row.get("epoch"):
                    continue
                values = {
                    name: float(value)
                    for name, value in row.items()
                    if value and name not in ("epoch", "step") and not name.endswith("_step")
                }
                epochs[int(float(row["epoch"]))] |= values
    return [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]
