"""The fidelity report: a row for every compiled layer and head."""

import math
from typing import Any

from rich.table import Table
from torch import Tensor

from asap_exp.console import console
from asap_exp.distillation.ridge import Solution


def fidelity_rows(
    path: str,
    solution: Solution,
    held_out_r_squared: Tensor,
    asap: dict[str, Tensor],
    teacher: dict[str, Tensor],
) -> list[dict[str, Any]]:
    """R^2 on the samples of the fit and on held-out ones; plan measures on the held-out ones."""
    columns = {
        "r_squared": solution.r_squared,
        "r_squared_held_out": held_out_r_squared,
        "condition_number": solution.condition,
        "l1_row_distance": asap["l1_row_distance"],
        "column_error": asap["column_error"],
        "largest_column_error": asap["largest_column_error"],
        "teacher_column_error": teacher["column_error"],
    }
    return [
        {"layer": path, "head": head}
        | {name: finite(values[head].item()) for name, values in columns.items()}
        for head in range(len(held_out_r_squared))
    ]


def finite(x: float) -> float | None:
    """JSON has no NaN: a number that is not defined is null."""
    return x if math.isfinite(x) else None


def print_fidelity(rows: list[dict[str, Any]]) -> None:
    """One line a layer, means over its heads."""
    table = Table(title="Fidelity on held-out samples (mean over heads)")
    titles = {
        "layer": "layer",
        "r_squared": "R²",
        "r_squared_held_out": "R² held out",
        "condition_number": "cond.",
        "l1_row_distance": "L1 rows",
        "column_error": "col. error",
        "teacher_column_error": "teacher's",
    }
    for title in titles.values():
        table.add_column(title, justify="left" if title == "layer" else "right")
    for layer in dict.fromkeys(row["layer"] for row in rows):
        heads = [row for row in rows if row["layer"] == layer]
        cells = [mean_cell([row[key] for row in heads]) for key in list(titles)[1:]]
        table.add_row(layer, *cells)
    console().print(table)


def mean_cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""
