"""A calibration: the steps that fit the maps of a model's layers, one after the other.

Imports neither Hydra nor Lightning: `distill` and `asap_exp.compile` both call it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asap_exp.attention import (
    AsapAttention,
    Attention,
    attention_layers,
    build_attention,
    swapped,
)
from asap_exp.attention.learned import LearnedAttention
from asap_exp.attention.swapping import named
from asap_exp.calibration.capture import sinkhorn
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.data import Batches, CalibrationData, is_stand_in
from asap_exp.calibration.imitation import check_taught, imitated_layers
from asap_exp.calibration.imitation import mean_kl as imitation_kl
from asap_exp.calibration.kl import mean_kl
from asap_exp.calibration.maps import RidgeFit
from asap_exp.calibration.prediction_fit import Example, mean_prediction_kl, teacher_examples
from asap_exp.calibration.recording import record
from asap_exp.calibration.stacking import (
    by_layer,
    stack_maps,
    stack_targets,
    stacks,
    unstack_into,
)
from asap_exp.calibration.steps import (
    ImitationData,
    ImitationStep,
    LayerData,
    LayerStep,
    ModelData,
    ModelStep,
    StartStep,
)
from asap_exp.calibration.steps.base import Shown, Step
from asap_exp.core.agreement import of_first
from asap_exp.core.console import timed

BEFORE_FIT = "start"
"""Name, among those of steps, of the plans of an imitation before its fit."""

KINDS = ("maps", "controls")
"""Fields of `Calibration` that are fitted by the same steps."""


@dataclass
class Calibration:
    """Result of a calibration, by layer path, with its scores on the held-out data."""

    maps: dict[str, AsapAttention] = field(default_factory=dict)
    controls: dict[str, AsapAttention] = field(default_factory=dict)
    """Query features and no slices, calibrated by the same steps."""
    imitations: dict[str, LearnedAttention] = field(default_factory=dict)
    """Instead of maps: attention that imitates the teacher's plans."""
    scales: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {k: {} for k in KINDS})
    """Per-weight step sizes for the steps by gradient, by kind and layer path."""
    ridge: dict[str, RidgeFit] = field(default_factory=dict)
    plan_kl: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """KL of the map's plans after each step on this layer, by step: `[H]`, nats per row."""
    prediction_kl: dict[str, dict[str, float]] = field(default_factory=dict)
    """KL of the predictions `before` and `after` the steps on the whole model, by kind.

    Of imitations, under "imitations": before and after their fit.
    """

    @property
    def compiled(self) -> dict[str, Attention]:
        """What takes the place of the teacher's attention."""
        return {**self.maps, **self.imitations}

    def found(self, kind: str) -> dict[str, AsapAttention]:
        """Return `maps` or `controls`."""
        return {"maps": self.maps, "controls": self.controls}[kind]

    def identity(self, config: CalibrationConfig) -> dict[str, Any]:
        """Describe, for an artifact, how it was made."""
        return {
            "slices": config.slices,
            "query_features": config.query_features,
            "adaptive": config.adaptive,
            "logits": config.logits,
            "refine": config.refine,
            "dtype": "float32",
            "calibration": config.identity(),
            "prediction_kl": self.prediction_kl,
        }


@torch.inference_mode(False)
@torch.enable_grad()
def calibrate(data: CalibrationData, paths: Sequence[str]) -> Calibration:
    """Fit the map of every layer at `paths`; the teacher is left as it is.

    Runs with gradients, whatever the caller switched off.
    """
    result = Calibration()
    if data.config.imitates:
        imitate(data, list(paths), result)
        return result
    if data.config.sequential:
        # The controls see what the controls before them produce, as the maps do.
        for kind, path in itertools.product(KINDS, paths):
            with swapped(data.net, result.found(kind)):
                fit_layers(data, [path], result, [kind])
    else:
        fit_layers(data, list(paths), result, KINDS)
    fit_model(data, result)
    return result


def fit_layers(
    data: CalibrationData, group: list[str], result: Calibration, kinds: Sequence[str]
) -> None:
    """Take the steps on single layers, for the layers of `group`, on one recording."""
    net, config = data.net, data.config
    (start,), steps = config.chosen(StartStep), config.chosen(LayerStep)
    room = config.room
    sums, targets = record(data, data.fit, group, room if steps else 0)
    checks, held_out = record(data, data.held_out, group, room)
    for path in data.progress.track(group, f"{start.name}, {len(group)} layers", len(group)):
        eps = sinkhorn(attention_layers(net)[path]).eps
        with timed(f"{start.name} of {named(path)}"):
            ridge = start.fit(sums[path], checks[path], config)
        if "maps" in kinds:
            result.ridge[path] = ridge
            result.maps[path] = ridge.map(config, eps)
            result.scales["maps"][path] = ridge.scale()
            result.plan_kl[path] = {start.name: mean_kl(result.maps[path], held_out[path])}
        if "controls" in kinds:
            result.controls[path] = ridge.control(config, eps)
            result.scales["controls"][path] = ridge.control_scale()
    if steps:
        attends = {path: result.found(kinds[0])[path] for path in group}
        for paths in of_first(list(stacks(attends, targets))):  # ranks have parts of unequal size
            # Popped: what was recorded is not kept a second time beside the stacked copy.
            fitted, checked = (
                stack_targets([each.pop(path) for path in paths]) for each in (targets, held_out)
            )
            for kind in kinds:
                fit_stack(steps, paths, LayerData(fitted, checked, config.seed), data, result, kind)


def fit_stack(
    steps: Sequence[LayerStep],
    paths: Sequence[str],
    data: LayerData,
    of: CalibrationData,
    result: Calibration,
    kind: str,
) -> None:
    """Take the steps on single layers for layers that are fitted as one."""
    scale = torch.cat([result.scales[kind][path] for path in paths])
    attends = [result.found(kind)[path] for path in paths]
    whole = stack_maps(attends)
    for step in steps:
        with timed(f"{step.name} of {named(*paths)}, {kind}"):
            step.fit(whole, scale, replace(data, shown=shown(of, step, kind, paths)))
        if kind == "maps":
            kl = {"kl": mean_kl(whole, data.held_out)}
            for path, part in zip(paths, by_layer(attends, kl), strict=True):
                result.plan_kl[path][step.name] = part["kl"]
    unstack_into(whole, attends)


def fit_model(data: CalibrationData, result: Calibration) -> None:
    """Take the steps on the whole model's predictions, for the maps and for the controls."""
    steps = data.config.chosen(ModelStep)
    if not steps:
        return
    fit, held_out = (examples_of(data, batches) for batches in (data.fit, data.held_out))
    examples = ModelData(data.net, fit, held_out, data.precision, data.forward, data.config.seed)
    for kind in KINDS:
        for step in steps:
            watched = replace(examples, shown=shown(data, step, kind, list(result.maps)))
            with timed(f"{step.name} of {kind}"):
                kl = step.fit(result.found(kind), result.scales[kind], watched)
            result.prediction_kl[kind] = {**kl, **first_kl(result, kind)}


def examples_of(data: CalibrationData, batches: Batches) -> list[Example]:
    """Return the teacher's predictions on `fit` or `held_out`."""
    return teacher_examples(
        data.net,
        list(batches),
        data.precision,
        data.forward,
        partial(data.batch_name, batches),
        partial(is_stand_in, batches),
    )


def imitate(data: CalibrationData, paths: list[str], result: Calibration) -> None:
    """Fit another attention to the plans of every layer, each on the teacher's own activations."""
    (step,) = data.config.chosen(ImitationStep)
    layers = attention_layers(data.net)
    check_taught(step, {path: layers[path] for path in paths})
    fit, held_out = (imitated_layers(data, batches, paths) for batches in (data.fit, data.held_out))
    for path in paths:
        attend = build_attention({"name": step.attention})
        assert isinstance(attend, LearnedAttention), "an imitation has parameters to fit"
        attend.attach(layers[path])
        result.imitations[path] = attend.requires_grad_(False)
        kl = imitation_kl(attend, layers[path].attend, held_out[path])
        result.plan_kl[path] = {BEFORE_FIT: kl}
    examples = examples_of(data, data.held_out)

    def prediction_kl() -> float:
        with swapped(data.net, result.imitations):
            return mean_prediction_kl(data.net, examples, data.precision, data.forward)

    before = prediction_kl()
    for path, attend in result.imitations.items():
        # Popped: what was recorded of a layer is not needed once it is fitted.
        own = ImitationData(
            layers[path].attend,
            fit.pop(path),
            held_out[path],
            data.config.seed,
            shown(data, step, "maps", [path]),
        )
        with timed(f"{step.name} of {named(path)}"):
            step.fit(attend, own)
        result.plan_kl[path][step.name] = imitation_kl(attend, own.teacher, own.held_out)
    result.prediction_kl["imitations"] = {"before": before, "after": prediction_kl()}


def shown(data: CalibrationData, step: Step, kind: str, paths: Sequence[str]) -> Shown:
    """Return what shows the updates of a step on the layers at `paths`."""
    where = named(*paths) if len(paths) < 3 else f"{len(paths)} layers"
    control = "" if kind == "maps" else ", control without slices"
    return lambda items, total: data.progress.track(items, f"{step.name}, {where}{control}", total)


def first_kl(result: Calibration, kind: str) -> dict[str, float]:
    """Return the KL before the first step on the whole model, once one was taken."""
    known = result.prediction_kl.get(kind)
    return {} if known is None else {"before": known["before"]}
