"""Drift of the inputs of a compiled model since its calibration, by the column sums of its plans.

A layer's columns are as far from uniform as its map is wrong, or its teacher was. Activations that
drift away from those of the calibration show as a larger column error than it had then.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import attention_layers
from asap_exp.attention.diagnostics import column_error
from asap_exp.calibration.capture import Forward, checked_inputs, on_inputs
from asap_exp.calibration.data import is_stand_in
from asap_exp.calibration.fidelity import merge, of_all_ranks

ROUNDING = torch.finfo(torch.float32).eps


@torch.no_grad()
def column_errors(
    model: nn.Module,
    batches: Iterable[Any],
    paths: Iterable[str],
    precision: str,
    forward: Forward = on_inputs,
) -> dict[str, float]:
    """Mean column error of the layers at `paths` on the model's own activations, over heads too.

    It builds the plans, `[B, H, N, N]` a layer: for when it is asked for, not for every batch.
    """
    layers = attention_layers(model)
    totals: dict[str, dict[str, Tensor]] = {path: {} for path in paths}
    samples = dict.fromkeys(totals, 0)
    passes = checked_inputs(model, batches, totals, precision, forward)
    for number, recorded in enumerate(passes):
        counted = not is_stand_in(batches, number)
        for path, total in totals.items():
            for q, k, _, mask in recorded[path]:
                plan = layers[path].attend.plan(q, k, key_padding_mask=mask)
                error = {"column_error": column_error(plan, mask)}
                merge(total, error, samples[path], len(q) * counted)
                samples[path] += len(q) * counted
    return {
        path: of_all_ranks(total, samples[path])["column_error"].mean().item()
        for path, total in totals.items()
    }


def drift_ratios(now: Mapping[str, float], at_calibration: Mapping[str, float]) -> dict[str, float]:
    """Column errors now over those at calibration, by layer: about 1 while nothing has drifted.

    Errors below float32's rounding count as that: a layer over one token has none at all.
    """
    return {path: max(now[path], ROUNDING) / max(at_calibration[path], ROUNDING) for path in now}
