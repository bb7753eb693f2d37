"""Fidelity report: a row per compiled layer and head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asap_exp.calibration.calibrate import Calibration
from asap_exp.calibration.fidelity import Fidelity
from asap_exp.core.console import plain_table, say, show
from asap_exp.core.files import read_json
from asap_exp.core.records.fidelity import FIDELITY
from asap_exp.core.score import Score
from asap_exp.core.typed import finite


def fidelity_rows(result: Calibration, fidelity: Mapping[str, Fidelity]) -> list[dict[str, Any]]:
    """Return R^2 and condition number of the ridge fit, and fidelity of the final map.

    R^2 is given on the data of the fit and on held-out data; KL after each step and plan measures
    on held-out data, on the teacher's own activations (KL of a sequential calibration: on those
    that the layer was fitted on).
    """
    rows = []
    for path, compiled in fidelity["asap"].items():
        heads = len(compiled["column_error"])
        columns = {
            **fit_columns(result, path, heads),
            "l1_row_distance": compiled["l1_row_distance"],
            "column_error": compiled["column_error"],
            "largest_column_error": compiled["largest_column_error"],
            "teacher_column_error": fidelity["teacher"][path]["column_error"],
        }
        rows += [
            {"layer": path, "head": head}
            | {name: finite(values[head].item()) for name, values in columns.items()}
            for head in range(heads)
        ]
    return rows


def fit_columns(result: Calibration, path: str, heads: int) -> dict[str, Tensor]:
    """Return the columns about the fit of the map at `path`; NaN if the layer is not ASAP."""
    unknown = torch.full((heads,), torch.nan)
    steps = dict.fromkeys(step for kl in result.plan_kl.values() for step in kl)
    ridge, kl = result.ridge.get(path), result.plan_kl.get(path, {})
    return {
        "r_squared": unknown if ridge is None else ridge.solution.r_squared,
        "r_squared_held_out": unknown if ridge is None else ridge.held_out_r_squared,
        "condition_number": unknown if ridge is None else ridge.solution.condition,
        **{f"kl_{step}": kl.get(step, unknown) for step in steps},
    }


def print_fidelity(rows: list[dict[str, Any]], method: str = "ASAP") -> None:
    """Print one line per layer, means over its heads; columns that nothing is known of are not."""
    table = plain_table("Fidelity on held-out samples, means over heads")
    titles = {
        "layer": "layer",
        "r_squared": "R² of the\ndual, fit",
        "r_squared_held_out": "R² of the\ndual, held out",
        "condition_number": "condition\nof the fit",
        **{
            key: f"KL in nats after\n{key[3:]}".replace("_", " ")
            for key in rows[0]
            if key.startswith("kl_")
        },
        "l1_row_distance": "L1 row\ndistance",
        "column_error": f"column error,\n{method}",
        "teacher_column_error": "column error,\nteacher",
    }
    titles = {
        key: title for key, title in titles.items() if any(row[key] is not None for row in rows)
    }
    for title in titles.values():
        name = title == "layer"
        table.add_column(title, justify="left" if name else "right", no_wrap=name)
    for layer in dict.fromkeys(row["layer"] for row in rows):
        heads = [row for row in rows if row["layer"] == layer]
        cells = [mean_cell([row[key] for row in heads]) for key in list(titles)[1:]]
        table.add_row(layer, *cells)
    show(table)


def print_prediction_kl(result: Calibration) -> None:
    """Print how fits of the whole model changed the predictions on held-out data, in nats."""
    together = "all layers were fitted together"
    fits = {
        "maps": (", ASAP", together),
        "controls": (", query features only", together),
        "imitations": ("", "the fit"),
    }
    for name, kl in result.prediction_kl.items():
        words, fit = fits[name]
        say(
            f"KL of the predictions on held-out samples{words}: {kl['before']:.4g} before {fit}, "
            f"{kl['after']:.4g} after"
        )


def score(folder: Path) -> Score:
    """Return the mean L1 distance between rows of the map's and the teacher's plans.

    It is not known where nothing was fitted, since no data was read.
    """
    rows = read_json(folder / FIDELITY)
    known = [row["l1_row_distance"] for row in rows if row["l1_row_distance"] is not None]
    value = sum(known) / len(known) if known else None
    text = "" if value is None else f"{value:.4g}"
    return Score(name="L1 distance of rows", value=value, text=text, lower_is_better=True)


def mean_cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""
