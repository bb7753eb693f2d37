"""What a compilation found, in a few lines: how close each layer came, and what to do about it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asap_exp.attention import AsapAttention, LayerInputs, SinkhornAttention, attention_layers
from asap_exp.attention.diagnostics import column_error
from asap_exp.attention.swapping import named
from asap_exp.calibration.calibrate import Calibration
from asap_exp.calibration.capture import checked_inputs, sinkhorn
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.kl import num_rows, teacher_target, total_kl
from asap_exp.calibration.steps import ModelStep, names_of

UPDATES = (1, 2, 3, 5, 7, 10, 15)
"""Numbers of updates with which a map is compared."""

FEW_TOKENS = 160
"""Up to this length a few updates have been as fast as a map (docs/results.md)."""

ENOUGH = 2
"""Updates than which a map should be closer."""

NEGLIGIBLE = 1e-4
"""Divergence of plans, in nats per row, that no prediction shows."""

UNBALANCED = 0.1
"""Column error from which a teacher's plans are not nearly doubly stochastic."""

LEARNED = "learned_slices"
"""The step that is suggested where a map is far from the teacher."""


@dataclass
class LayerSummary:
    """How close the map of a layer is on held-out batches; means over its heads."""

    path: str
    r_squared: float
    """Share of the dual's variance that the regression explains."""
    kl: float
    """KL(teacher's row || map's), nats."""
    updates: int
    """The largest of `UPDATES` after which plans are no closer; 0 if one update is closer."""
    one_update: float
    """KL(teacher's row || that after one update), nats."""
    column_error: float
    """Of the teacher's plans."""
    tokens: int
    """The most keys that a plan had."""


@torch.no_grad()
def layer_summaries(data: CalibrationData, result: Calibration) -> list[LayerSummary]:
    """Compare maps with fewer updates, on the activations that the teacher has."""
    layers = {path: attention_layers(data.net)[path] for path in result.maps}
    totals = {path: LayerTotal(result.maps[path], sinkhorn(layers[path])) for path in layers}
    inputs = checked_inputs(data.net, data.held_out, layers, data.precision, data.forward)
    for recorded in inputs:
        for path, total in totals.items():
            for call in recorded[path]:
                total.add(call)
    return [
        total.summary(named(path), result.ridge[path].held_out_r_squared.mean().item())
        for path, total in totals.items()
    ]


class LayerTotal:
    """Sums over the calls of one layer: divergences of the map and of fewer updates."""

    def __init__(self, map: AsapAttention, teacher: SinkhornAttention) -> None:
        self.map, self.teacher = map, teacher
        self.fewer = truncations(map, teacher.num_iters)
        self.kl = dict.fromkeys((0, *self.fewer), 0.0)
        self.column_error, self.rows, self.tokens = 0.0, 0, 0

    def add(self, call: LayerInputs) -> None:
        """Add one call of the teacher's layer."""
        target = teacher_target(call, self.teacher)
        for updates, attend in {0: self.map, **self.fewer}.items():
            self.kl[updates] += total_kl(attend, target).mean().item()
        mask = call.key_padding_mask
        plan = self.teacher.plan(call.q, call.k, key_padding_mask=mask)
        self.column_error += column_error(plan, mask).mean().item() * num_rows(target)
        self.rows += num_rows(target)
        self.tokens = max(self.tokens, call.k.shape[2])

    def summary(self, path: str, r_squared: float) -> LayerSummary:
        rows = max(self.rows, 1)
        beaten = [updates for updates in self.fewer if self.kl[updates] >= self.kl[0]]
        return LayerSummary(
            path,
            r_squared,
            max(self.kl[0] / rows, 0.0),  # rounding may leave a sum of differences below it
            max(beaten, default=0),
            self.kl.get(1, self.kl[0]) / rows,
            self.column_error / rows,
            self.tokens,
        )


def truncations(map: AsapAttention, num_iters: int) -> dict[int, AsapAttention]:
    """Return Sinkhorn with fewer updates than the teacher's, as maps without slices."""
    empty = map.theta[:, :0], map.weight[:, :0]
    return {
        updates: AsapAttention(*empty, refine=updates - 1, eps=map.eps)
        for updates in UPDATES
        if updates < num_iters
    }


def summary(data: CalibrationData, result: Calibration) -> list[str]:
    """Return a line per layer, and some of advice."""
    found = layer_summaries(data, result)
    return [*table(found), *advice(found, data.config)]


def table(found: Sequence[LayerSummary]) -> list[str]:
    """Return a heading, and a line per layer below it."""
    width = max(len("layer"), *(len(each.path) for each in found))
    lines = [f"{'layer':{width}}  {'R²':>5}  KL       closer than  teacher's column error"]
    for each in found:
        closer = {0: "none", 1: "1 update"}.get(each.updates, f"{each.updates} updates")
        lines.append(
            f"{each.path:{width}}  {each.r_squared:5.2f}  {each.kl:<7.2g}  {closer:11}  "
            f"{each.column_error:.2g}"
        )
    return lines


def advice(found: Sequence[LayerSummary], config: CalibrationConfig) -> list[str]:
    """Say what these numbers suggest."""
    if max(each.one_update for each in found) < NEGLIGIBLE:
        return [
            "The teacher's plans are those of a single update, and a map has nothing to gain. They "
            "are nearly uniform before a model is trained"
        ]
    lines = []
    worst = max(found, key=lambda each: each.column_error)
    if worst.column_error > UNBALANCED:
        lines.append(
            f"The teacher's own plans miss their column sums, by {worst.column_error:.2g} at "
            f"{worst.path}: a norm on q and k, more updates or a larger eps bring them nearer"
        )
    weakest = min(found, key=lambda each: (each.updates, -each.kl))
    if weakest.updates < ENOUGH and weakest.kl > NEGLIGIBLE:
        lines.append(
            f"{ENOUGH} Sinkhorn updates are closer to the teacher than the map of {weakest.path}; "
            f"try {', '.join(larger(config))}"
        )
    tokens = max(each.tokens for each in found)
    if tokens <= FEW_TOKENS:
        lines.append(
            f"At {tokens} tokens, fewer updates (SinkhornAttention(num_iters=...)) may be as fast "
            "as the maps: time both"
        )
    return lines


def larger(config: CalibrationConfig) -> list[str]:
    """Return arguments of `compile` for a map that can come closer, beside those given."""
    slices = 2 * config.slices or 8
    more = [f"slices={slices}"]
    if slices > config.candidates:
        more.append(f"candidates={slices}")
    if config.query_features and not config.logits:
        more.append("logits=True")
    if LEARNED not in config.steps:
        last = names_of(ModelStep)
        steps = [step for step in config.steps if step not in last]
        steps += [LEARNED, *(step for step in config.steps if step in last)]
        more.append(f"steps=({', '.join(map(json.dumps, steps))})")
    return more
