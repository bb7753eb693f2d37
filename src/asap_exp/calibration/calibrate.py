"""A calibration: the steps that fit the maps of a model's layers, one after the other.

Imports neither Hydra nor Lightning: `distill` and `asap_exp.compile` both call it.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asap_exp.attention import (
    AsapAttention,
    MultiHeadAttention,
    SinkhornAttention,
    attention_layers,
    swapped,
)
from asap_exp.calibration.capture import (
    Forward,
    Recorded,
    checked_inputs,
    device_of,
    on_inputs,
)
from asap_exp.calibration.end_to_end import fit_predictions, teacher_examples
from asap_exp.calibration.kl import Target, mean_kl, teacher_target
from asap_exp.calibration.maps import RidgeFit, fit_ridge
from asap_exp.calibration.plan_fit import fit_plans
from asap_exp.calibration.ridge import NormalEquations, random_slices
from asap_exp.calibration.stacking import (
    by_layer,
    give_back,
    joined_map,
    joined_targets,
    stacks,
)
from asap_exp.core.config import CalibrationConfig
from asap_exp.core.console import progress

MIB = 2**20

KINDS = ("maps", "controls")
"""What is calibrated, by the same steps: fields of `Calibration`."""


class Batches(Protocol):
    """A loader: so many batches, the same ones whenever it is iterated over."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Problem:
    """The frozen teacher, the data to fit on and to check on, and the settings."""

    net: nn.Module
    fit: Batches
    held_out: Batches
    config: CalibrationConfig
    precision: str
    forward: Forward = on_inputs

    def batch_name(self, batches: Batches, index: int) -> str:
        """Of one of `fit` or `held_out`, counted through both."""
        index += len(self.fit) if batches is self.held_out else 0
        total = len(self.fit) + len(self.held_out)
        return f"calibration batch {index + 1} of {total} (index {index})"


@dataclass
class Calibration:
    """What the steps made, by layer path, and what they reached on the held-out data."""

    maps: dict[str, AsapAttention] = field(default_factory=dict)
    controls: dict[str, AsapAttention] = field(default_factory=dict)
    """Query features and no slices, calibrated by the same steps."""
    scales: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {k: {} for k in KINDS})
    """By kind and layer path: the scale of each weight, for the steps by gradient."""
    ridge: dict[str, RidgeFit] = field(default_factory=dict)
    plan_kl: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """KL of the map's plans after each step on this layer, by step: `[H]`, nats a row."""
    prediction_kl: dict[str, dict[str, float]] = field(default_factory=dict)
    """KL of the predictions `before` and `after` end_to_end, of `maps` and of `controls`."""

    def found(self, kind: str) -> dict[str, AsapAttention]:
        """`maps` or `controls`."""
        return {"maps": self.maps, "controls": self.controls}[kind]

    def identity(self, config: CalibrationConfig) -> dict[str, Any]:
        """What an artifact says of how it was made."""
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
def calibrate(problem: Problem, paths: Sequence[str]) -> Calibration:
    """Fits the map of every layer at `paths`; the teacher is left as it is.

    With gradients, whatever the caller switched off.
    """
    result = Calibration()
    if problem.config.sequential:
        # The controls see what the controls before them produce, as the maps do.
        for kind, path in itertools.product(KINDS, paths):
            with swapped(problem.net, result.found(kind)):
                fit_layers(problem, [path], result, [kind])
    else:
        fit_layers(problem, list(paths), result, KINDS)
    if "end_to_end" in problem.config.steps:
        fit_together(problem, result)
    return result


def fit_layers(
    problem: Problem, group: list[str], result: Calibration, kinds: Sequence[str]
) -> None:
    """The steps that look at one layer alone, for the layers of `group`, on one recording."""
    net, config = problem.net, problem.config
    by_gradient = [step for step in config.steps if step in ("kl", "learned_slices")]
    room = config.memory_mib * MIB
    sums, targets = record(problem, problem.fit, group, room if by_gradient else 0)
    checks, held_out = record(problem, problem.held_out, group, room)
    for path in group:
        eps = sinkhorn(attention_layers(net)[path]).eps
        ridge = fit_ridge(sums[path], checks[path], config)
        if "maps" in kinds:
            result.ridge[path] = ridge
            result.maps[path] = ridge.map(config, eps)
            result.scales["maps"][path] = ridge.scale()
            result.plan_kl[path] = {"ridge": mean_kl(result.maps[path], held_out[path])}
        if "controls" in kinds:
            result.controls[path] = ridge.control(config, eps)
            result.scales["controls"][path] = ridge.control_scale()
    if by_gradient:
        attends = {path: result.found(kinds[0])[path] for path in group}
        for paths in list(stacks(attends, targets)):
            # Popped: what was recorded is not kept a second time beside the joined copy.
            fitted, checked = (
                joined_targets([each.pop(path) for path in paths]) for each in (targets, held_out)
            )
            for kind in kinds:
                fit_stack(config, by_gradient, paths, fitted, checked, result, kind)


def fit_stack(
    config: CalibrationConfig,
    steps: Sequence[str],
    paths: Sequence[str],
    targets: Sequence[Target],
    held_out: Sequence[Target],
    result: Calibration,
    kind: str,
) -> None:
    """The steps by gradient on plans, for layers that are fitted as one."""
    scale = torch.cat([result.scales[kind][path] for path in paths])
    attends = [result.found(kind)[path] for path in paths]
    whole = joined_map(attends)
    for step in steps:
        fit_plans(
            whole,
            scale,
            targets,
            held_out,
            getattr(config, step),
            slices=step == "learned_slices",
            seed=config.seed,
        )
        if kind == "maps":
            kl = {"kl": mean_kl(whole, held_out)}
            for path, part in zip(paths, by_layer(attends, kl), strict=True):
                result.plan_kl[path][step] = part["kl"]
    give_back(whole, attends)


def layer_seed(net: nn.Module, path: str, config: CalibrationConfig) -> int:
    """Another one for every layer, the same whichever layers are compiled."""
    return config.seed * 1000 + list(attention_layers(net)).index(path)


def record(
    problem: Problem, batches: Batches, group: list[str], room: int
) -> tuple[dict[str, NormalEquations], dict[str, list[Target]]]:
    """The sums over all batches, and of the batches themselves as many as `room` bytes hold.

    At least one; where not all fit, every second, fourth, ... of them: texts come from short to
    long, and a fit must see both.
    """
    layers = attention_layers(problem.net)
    config = problem.config
    sums = {
        path: NormalEquations(
            candidates(problem, path), adaptive=config.adaptive, logits=config.logits
        )
        for path in group
    }
    teachers = {path: sinkhorn(layers[path]) for path in group}
    name = partial(problem.batch_name, batches)
    inputs = checked_inputs(problem.net, batches, group, problem.precision, problem.forward, name)
    passes: Iterable[Recorded] = progress(inputs, "Calibrating", len(batches))
    kept: list[dict[str, list[Target]]] = []
    stride = 1
    for number, recorded in enumerate(passes):
        for path, teacher in teachers.items():
            for call in recorded[path]:
                sums[path].add(call, teacher)
        if room and number % stride == 0:
            kept.append(
                {p: [teacher_target(call, t) for call in recorded[p]] for p, t in teachers.items()}
            )
        while num_bytes(kept) > room and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
    return sums, {path: [target for batch in kept for target in batch[path]] for path in group}


def num_bytes(kept: Sequence[dict[str, list[Target]]]) -> int:
    """Of what was kept of that number of batches."""
    return sum(t.nbytes for batch in kept for targets in batch.values() for t in targets)


def candidates(problem: Problem, path: str) -> Tensor:
    """Random slices `[H, candidates, D]`, by the layer's number and the seed."""
    layer = attention_layers(problem.net)[path]
    seed = layer_seed(problem.net, path, problem.config)
    theta = random_slices(layer.num_heads, problem.config.candidates, layer.head_dim, seed=seed)
    return theta.to(device_of(problem.net))


def fit_together(problem: Problem, result: Calibration) -> None:
    """The step on the predictions of the whole model: of the maps, and of the controls."""
    fit, held_out = (
        teacher_examples(
            problem.net,
            list(batches),
            problem.precision,
            problem.forward,
            partial(problem.batch_name, batches),
        )
        for batches in (problem.fit, problem.held_out)
    )
    for kind in KINDS:
        result.prediction_kl[kind] = fit_predictions(
            problem.net,
            result.found(kind),
            result.scales[kind],
            fit,
            held_out,
            problem.config.end_to_end,
            precision=problem.precision,
            forward=problem.forward,
            seed=problem.config.seed,
        )


def sinkhorn(layer: MultiHeadAttention) -> SinkhornAttention:
    """The teacher's attention in `layer`."""
    assert isinstance(layer.attend, SinkhornAttention), "only Sinkhorn layers are calibrated"
    return layer.attend
