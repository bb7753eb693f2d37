"""The fidelity report: a row for every compiled layer and head."""

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from asap_exp.console import console
from asap_exp.distillation.calibrate import Calibration
from asap_exp.distillation.fidelity import Fidelity


def fidelity_rows(result: Calibration, fidelity: Mapping[str, Fidelity]) -> list[dict[str, Any]]:
    """R^2 and condition number of the ridge fit; the rest is of the map as it ended.

    R^2 on the data of the fit and on held-out data; KL after each step and plan measures on the
    held-out data, on the teacher's own activations (KL of a sequential calibration: on those that
    the layer was fitted on).
    """
    rows = []
    for path, ridge in result.ridge.items():
        asap, teacher = fidelity["asap"][path], fidelity["teacher"][path]
        columns = {
            "r_squared": ridge.solution.r_squared,
            "r_squared_held_out": ridge.held_out_r_squared,
            "condition_number": ridge.solution.condition,
            **{f"kl_{step}": kl for step, kl in result.plan_kl[path].items()},
            "l1_row_distance": asap["l1_row_distance"],
            "column_error": asap["column_error"],
            "largest_column_error": asap["largest_column_error"],
            "teacher_column_error": teacher["column_error"],
        }
        rows += [
            {"layer": path, "head": head}
            | {name: finite(values[head].item()) for name, values in columns.items()}
            for head in range(len(ridge.held_out_r_squared))
        ]
    return rows


def finite(x: float) -> float | None:
    """JSON has no NaN: a number that is not defined is null."""
    return x if math.isfinite(x) else None


def print_fidelity(rows: list[dict[str, Any]]) -> None:
    """One line a layer, means over its heads."""
    table = Table(title="Fidelity on held-out images (mean over heads)")
    titles = {
        "layer": "layer",
        "r_squared": "R²",
        "r_squared_held_out": "R² held out",
        "condition_number": "cond.",
        **{key: f"KL {key[3:]}".replace("_", " ") for key in rows[0] if key.startswith("kl_")},
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


def print_prediction_kl(result: Calibration) -> None:
    """What fitting all layers together did to the predictions on held-out data."""
    for name, kl in result.prediction_kl.items():
        words = {"maps": "ASAP", "controls": "query features only"}[name]
        print(
            f"KL of the predictions on held-out images, {words}: {kl['before']:.4g} before "
            f"end_to_end, {kl['after']:.4g} after"
        )


def mean_cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""
