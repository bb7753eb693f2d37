"""Distance of other attentions from the teacher's plans, on the teacher's own activations."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import Attention, attention_layers
from asap_exp.attention.diagnostics import (
    column_error,
    entropy,
    l1_row_distance,
    largest_column_error,
    row_error,
)
from asap_exp.calibration.capture import layer_inputs
from asap_exp.calibration.data import is_stand_in
from asap_exp.core.agreement import alone, largest, total

Fidelity = dict[str, dict[str, Tensor]]
"""Measures `[H]` by layer path, then by name."""


@torch.no_grad()
def plan_fidelity(
    model: nn.Module,
    batches: Iterable[Any],
    precision: str,
    candidates: Mapping[str, Mapping[str, Attention]],
) -> dict[str, Fidelity]:
    """Measure, for each named set of replacements, its plans and their distance from the teacher's.

    Every layer sees the q and k of the unchanged teacher, so that one layer's error is not counted
    in the next. Means over samples and valid tokens, and all ranks; the largest column error is a
    maximum.
    """
    layers = attention_layers(model)
    totals: dict[str, Fidelity] = {name: {} for name in candidates}
    samples = dict.fromkeys(layers, 0)
    for number, recorded in enumerate(layer_inputs(model, batches, precision)):
        counted = not is_stand_in(batches, number)
        for path, (q, k, _, mask) in ((p, call) for p, calls in recorded.items() for call in calls):
            teacher = layers[path].attend.plan(q, k, key_padding_mask=mask)
            for name, replacements in candidates.items():
                if path not in replacements:
                    continue
                plan = replacements[path].plan(q, k, key_padding_mask=mask)
                measures = describe(plan, teacher, mask)
                merge(totals[name].setdefault(path, {}), measures, samples[path], len(q) * counted)
            samples[path] += len(q) * counted
    for fidelity in totals.values():
        for path in fidelity:
            fidelity[path] = of_all_ranks(fidelity[path], samples[path])
    return totals


def describe(plan: Tensor, teacher: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    return {
        "l1_row_distance": l1_row_distance(plan, teacher, mask),
        "row_error": row_error(plan, mask),
        "column_error": column_error(plan, mask),
        "largest_column_error": largest_column_error(plan, mask),
        "entropy": entropy(plan, mask),
    }


def merge(totals: dict[str, Tensor], new: dict[str, Tensor], samples: int, batch: int) -> None:
    """Fold the measures of `batch` further samples into means over `samples`."""
    for name, value in new.items():
        value = value.double().cpu()
        if samples == 0:
            totals[name] = value
        elif name.startswith("largest"):
            totals[name] = torch.maximum(totals[name], value)
        else:
            totals[name] = (totals[name] * samples + value * batch) / (samples + batch)


def of_all_ranks(totals: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    """Return the measures over the samples of all ranks, `samples` of them on this one."""
    if alone():
        return totals
    whole = total(samples)
    return {
        name: largest(value) if name.startswith("largest") else total(value * samples) / whole
        for name, value in totals.items()
    }
