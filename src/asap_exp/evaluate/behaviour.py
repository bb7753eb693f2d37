"""What the plans of whole models do, each in its own model as it runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asap_exp.attention import Attention, LayerInputs, attention_layers, swapped
from asap_exp.calibration.capture import layer_inputs
from asap_exp.calibration.data import is_stand_in
from asap_exp.core.agreement import largest, total
from asap_exp.core.config import CorruptionConfig
from asap_exp.core.console import progress
from asap_exp.core.errors import UserError
from asap_exp.core.ranks import ALONE, Ranks
from asap_exp.data.loader import BatchLoader, DeviceLoader
from asap_exp.evaluate.accuracy import compare_predictions
from asap_exp.evaluate.corruption import CORRUPTIONS, corrupted
from asap_exp.evaluate.plan_statistics import (
    effective_rank,
    largest_column_sum,
    largest_entropy,
    mean_column_error,
    mean_row_entropy,
)
from asap_exp.evaluate.states import recorded_states
from asap_exp.evaluate.variants import Variant

SEVERITIES = (1, 3, 5)
"""Severities of the corruptions."""
COMPILED = ("asap", "coarse", "imitation", "budget")
"""Groups of rows of compiled maps."""
PART = 16
"""Samples whose plans are in memory together, in float64."""
MEASURES = ("largest_column", "column_error", "entropy", "relative_entropy")


def whole_models(variants: Sequence[Variant]) -> list[Variant]:
    """Return the rows of models as trained, and those of maps that replace every layer."""
    return [
        row
        for row in variants
        if not row.replacements
        or (row.group in COMPILED and len(row.replacements) == len(attention_layers(row.net)))
    ]


def measure_behaviour(
    variants: Sequence[Variant],
    test: BatchLoader,
    *,
    precision: str,
    samples: int,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Return a `Behaviour` as JSON: of the whole models among `variants`, the teacher first.

    Plans and representations are those on the first `samples` of `test`, and of images all of
    `test` is predicted corrupted. Several `ranks` share the samples.
    """
    rows = whole_models(variants)
    described = progress(rows, "Plans of whole models", len(rows))
    seen = {
        row.key: describe(row, test.first(samples).shared(ranks), precision) for row in described
    }
    changed = accuracies(rows, test, precision, ranks) if isinstance(test, DeviceLoader) else {}
    return {
        "samples": min(samples, test.num_samples),
        "rows": [
            {
                "key": row.key,
                **seen[row.key],
                "corrupted": [
                    {"name": name, "severity": severity, "accuracy": found[row.key]["accuracy"]}
                    for (name, severity), found in changed.items()
                ],
            }
            for row in rows
        ],
    }


def accuracies(
    rows: Sequence[Variant], test: DeviceLoader, precision: str, ranks: Ranks
) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
    """Return the means of `Comparison` by key, for each corruption and severity."""
    found = {}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            mine = corrupted(test, CorruptionConfig(name, severity)).shared(ranks)
            batches = progress(mine, f"Predicting, {name} of severity {severity}", len(mine))
            found[name, severity] = compare_predictions(
                rows, batches, precision, partial(is_stand_in, mine)
            )
    return found


@dataclass
class Sums:
    """Sums over samples, float64 on the CPU, and the largest of all."""

    samples: int = 0
    layers: dict[str, Tensor] = field(default_factory=dict)
    """By layer path, `[MEASURES]`."""
    largest: dict[str, Tensor] = field(default_factory=dict)
    ranks: Tensor | None = None

    def add(
        self, calls: dict[str, LayerInputs], attends: dict[str, Attention], states: list[Tensor]
    ) -> None:
        """Add samples: what each layer received, and the tokens between the blocks."""
        mask = next(iter(calls.values())).key_padding_mask
        found = torch.stack([effective_rank(x, mask).sum() for x in states]).cpu()
        self.ranks = found if self.ranks is None else self.ranks + found
        for path, (q, k, _, padded) in calls.items():
            plan = attends[path].plan(q, k, key_padding_mask=padded)
            largest = largest_column_sum(plan, padded)
            entropy = mean_row_entropy(plan, padded)
            by_head = (
                largest,
                mean_column_error(plan, padded),
                entropy,
                entropy / largest_entropy(plan, padded)[:, None],
            )
            means = torch.stack([x.mean(dim=1).sum() for x in by_head]).cpu()
            self.layers[path] = self.layers.get(path, torch.zeros_like(means)) + means
            top = largest.max().cpu()
            self.largest[path] = torch.maximum(self.largest.get(path, top), top)
        self.samples += len(states[0])

    def of_all_ranks(self, paths: Iterable[str], num_ranks: int) -> "Sums":
        """Return the sums over the samples of all ranks; one without samples has none."""
        none = torch.zeros(len(MEASURES), dtype=torch.float64)
        ranks = torch.zeros(num_ranks, dtype=torch.float64) if self.ranks is None else self.ranks
        return Sums(
            total(self.samples),
            {path: total(self.layers.get(path, none)) for path in paths},
            {path: largest(self.largest.get(path, none[0])) for path in paths},
            total(ranks),
        )

    def means(self) -> dict[str, Any]:
        """Return the fields of a `RowBehaviour` about plans and representations."""
        assert self.ranks is not None
        return {
            "layers": [
                {
                    "layer": path,
                    **dict(zip(MEASURES, (sums / self.samples).tolist(), strict=True)),
                    "largest_column_of_all": self.largest[path].item(),
                }
                for path, sums in self.layers.items()
            ],
            "ranks": (self.ranks / self.samples).tolist(),
        }


@torch.no_grad()
def describe(row: Variant, samples: BatchLoader, precision: str) -> dict[str, Any]:
    """Return means over samples and heads, by layer, and the effective ranks by depth.

    Every layer sees what it gets in the model of this row, after the row's own layers before it.
    Raises UserError if a plan has no mass, or is not finite.
    """
    sums, layers = Sums(), attention_layers(row.net)
    with swapped(row.net, row.replacements) as net, recorded_states(net) as states:
        attends = {path: layer.attend for path, layer in attention_layers(net).items()}
        for number, recorded in enumerate(layer_inputs(net, samples, precision)):
            calls = {path: only(recorded[path], path) for path in layers}
            for start in range(0, len(states[0]) * (not is_stand_in(samples, number)), PART):
                part = slice(start, start + PART)
                sums.add(
                    {path: call.of_samples(part) for path, call in calls.items()},
                    attends,
                    [x[part] for x in states],
                )
            states.clear()
    sums = sums.of_all_ranks(layers, len(layers) + 1)
    found = sums.means()
    numbers = [*found["ranks"], *(x for row in found["layers"] for x in row.values())]
    if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
        raise UserError(
            f"{row.label} has a plan without mass, or plans or representations that are not "
            "finite, so what its plans do is not recorded; train or distill again, or set "
            "behaviour=false"
        )
    return found


def only(calls: Sequence[LayerInputs], path: str) -> LayerInputs:
    """Return the one call of a layer; UserError if it ran several times."""
    if len(calls) != 1:
        raise UserError(
            f"the attention layer at {path} ran {len(calls)} times in a pass, so it has no depth; "
            "set behaviour=false"
        )
    return calls[0]
