"""Compile any model that holds this project's attention layers, without Hydra or Lightning.

compiled = asap_exp.compile(model, loader)
asap_exp.save_compiled(compiled, "folder")
compiled = asap_exp.load_compiled(model, "folder")
asap_exp.drift(compiled, batch)
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asap_exp.attention import AsapAttention, attention_layers, swap_attention
from asap_exp.attention.conversion import convert
from asap_exp.attention.swapping import layers_at
from asap_exp.calibration.artifact import (
    Artifact,
    check_belongs,
    load_artifact,
    make_artifact,
    save_artifact,
    teacher_layers,
)
from asap_exp.calibration.batches import call, content_hash, num_samples, on_device, read
from asap_exp.calibration.calibrate import calibrate
from asap_exp.calibration.capture import Forward, device_of
from asap_exp.calibration.config import FURTHER_FEATURES, CalibrationConfig
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.drift import column_errors, drift_ratios
from asap_exp.calibration.steps import with_settings
from asap_exp.core.devices import AUTOCAST_DTYPES
from asap_exp.core.errors import UserError, check_choice, check_range
from asap_exp.core.schema import check_fields
from asap_exp.core.tensors import fingerprint
from asap_exp.ops.backend import BACKENDS

__all__ = ["compile", "convert", "drift", "load_compiled", "save_compiled"]

PRECISIONS = ("32-true", *AUTOCAST_DTYPES)


@torch.inference_mode(False)
def compile(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    steps: Sequence[str] = ("ridge", "learned_slices"),
    slices: int = 8,
    candidates: int = 128,
    query_features: bool = True,
    adaptive: bool = True,
    logits: bool = False,
    refine: int = 0,
    relaxed: bool = False,
    sequential: bool = False,
    ridge: float = 1e-6,
    layers: Sequence[str] | None = None,
    samples: int = 1280,
    holdout: float = 0.2,
    memory_mib: int = 4096,
    precision: str = "32-true",
    forward: Forward = call,
    backend: str = "auto",
    seed: int = 0,
    **more: Any,
) -> nn.Module:
    """Return a copy of `model`, in evaluation mode, with its Sinkhorn layers compiled to ASAP.

    `model` holds `MultiHeadAttention` layers with `SinkhornAttention` and is left unchanged.
    `layers` names the paths of those to compile; the default is all. `loader` yields batches and is
    read once until there are `samples` samples; labels are not needed. The last of these batches, a
    share of `holdout`, are used to stop the gradient steps early. `forward` runs a model on one
    batch; for `end_to_end` it must return predictions `[..., classes]`. `precision` is that of
    inference: 32-true, bf16-mixed or 16-mixed. `backend` is that of the operators; `torch.export`
    can trace "reference" on a GPU.

    The other keywords are the keys of conf/distill/calibration/; `more` are the settings of the
    steps by name, for example `kl=asap_exp.calibration.steps.AdamFit(updates=300, lr=0.03)`.
    `end_to_end` overfits a thousand samples: pass several thousand. A layer that runs more than
    once in a forward pass is fitted to all its calls. The function also works under `no_grad`.

    Raises UserError if the model has no Sinkhorn layer, the loader yields fewer than two batches,
    or queries and keys are not finite on one of them.
    """
    settings: dict[str, Any] = {
        "slices": slices,
        "candidates": candidates,
        "refine": refine,
        "memory_mib": memory_mib,
        "seed": seed,
    }
    check_whole_numbers(samples=samples, **settings)
    check_more(more)
    check_switches(
        query_features=query_features,
        adaptive=adaptive,
        logits=logits,
        relaxed=relaxed,
        sequential=sequential,
    )
    check_numbers(holdout=holdout, ridge=ridge)
    check_names("steps", steps)
    check_range("holdout", holdout, above=0, below=1)
    check_range("samples", samples, minimum=2)
    check_choice("precision", precision, PRECISIONS)
    check_choice("backend", backend, BACKENDS)
    check_has_weights(model)
    paths = sinkhorn_paths(model, layers)
    batches = read(loader, samples, device_of(model))
    first_held_out = len(batches) - math.ceil(holdout * (len(batches) - 1))
    fit, held_out = batches[:first_held_out], batches[first_held_out:]
    config = CalibrationConfig(
        name="sequential" if sequential else ([*steps] or ["ridge"])[-1],
        steps=list(steps),
        sequential=sequential,
        query_features=query_features,
        adaptive=adaptive,
        logits=logits,
        relaxed=relaxed,
        ridge=ridge,
        samples=sum(map(num_samples, fit)),
        holdout=sum(map(num_samples, held_out)),
        batch_size=max(map(num_samples, batches)),
        **(settings | {"candidates": max(candidates, slices)} | more),
    )
    check_fields(CalibrationConfig, asdict(config), "calibration.")
    compiled = copy.deepcopy(model).eval().requires_grad_(False)
    result = calibrate(CalibrationData(compiled, fit, held_out, config, precision, forward), paths)
    swap_attention(compiled, result.maps)
    identity = {
        **teacher_identity(model),
        **result.identity(config),
        "calibration_set": {"rows": config.samples, "sha256": content_hash(fit)},
        "column_error": column_errors(compiled, held_out, paths, precision, forward),
    }
    remember(compiled, make_artifact(result.maps, result.controls, identity), backend)
    return compiled


def save_compiled(model: nn.Module, folder: str | Path) -> None:
    """Write the map made by `compile`, asap.safetensors and asap.json, into `folder`.

    The model's other weights are not included: `load_compiled` takes them from the teacher.
    """
    save_artifact(Path(folder), artifact_of(model))


@torch.inference_mode(False)
def load_compiled(model: nn.Module, folder: str | Path, *, backend: str = "auto") -> nn.Module:
    """Return a copy of the teacher `model`, in evaluation mode, compiled as `folder` says.

    `folder` was written by `save_compiled` or `python -m asap_exp.distill`. Raises UserError if its
    files are missing or damaged, or were made from another teacher.
    """
    check_choice("backend", backend, BACKENDS)
    check_has_weights(model)
    artifact = load_artifact(Path(folder))
    check_belongs(artifact, teacher_identity(model), Path(folder))
    compiled = copy.deepcopy(model).eval().requires_grad_(False)
    attends = {path: artifact.attention(path).to(device_of(model)) for path in artifact.layers}
    swap_attention(compiled, attends)
    remember(compiled, artifact, backend)
    return compiled


def drift(
    model: nn.Module, batch: Any, *, precision: str = "32-true", forward: Forward = call
) -> dict[str, float]:
    """Return the column error of each compiled layer on `batch` over that at calibration, by layer.

    It is about 1 while the activations resemble those of the calibration, and grows as they drift.
    It builds the plans `[B, H, N, N]`, so it costs more than a forward pass: call it occasionally.
    """
    check_choice("precision", precision, PRECISIONS)
    artifact = artifact_of(model)
    batches = [on_device(batch, device_of(model))]
    now = column_errors(model, batches, artifact.layers, precision, forward)
    return drift_ratios(now, artifact.identity["column_error"])


def remember(compiled: nn.Module, artifact: Artifact, backend: str) -> None:
    for layer in layers_at(compiled, artifact.layers).values():
        if isinstance(layer.attend, AsapAttention):
            layer.attend.backend = backend
    compiled.asap_artifact = artifact  # type: ignore[assignment]


def artifact_of(model: nn.Module) -> Artifact:
    artifact = getattr(model, "asap_artifact", None)
    if not isinstance(artifact, Artifact):
        raise UserError(
            f"this {type(model).__name__} was not made by asap_exp.compile or load_compiled; "
            "only what they return can be saved or asked for its drift"
        )
    return artifact


def teacher_identity(model: nn.Module) -> dict[str, Any]:
    """Return the properties in which a saved map and its model must agree."""
    return {
        "teacher_sha256": fingerprint(model.state_dict()),
        "teacher_layers": teacher_layers(model),
    }


def check_has_weights(model: nn.Module) -> None:
    """Raise UserError if a weight has a shape but no values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"the weights of this {type(model).__name__} are not there: {name} is on the meta "
                'device; give it memory with model.to_empty(device="cpu"), and load its weights'
            )


def sinkhorn_paths(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Return the paths of the layers to compile; UserError if one is not a Sinkhorn layer."""
    found = teacher_layers(model)
    if not found:
        kinds = {layer.attend.name for layer in attention_layers(model).values()}
        holds = f"only {', '.join(sorted(kinds))} attention" if kinds else "no MultiHeadAttention"
        raise UserError(
            f"this {type(model).__name__} holds {holds}; compile takes a model whose layers are "
            "asap_exp.attention.MultiHeadAttention with SinkhornAttention in them"
        )
    if layers is None:
        return list(found)
    check_names("layers", layers)
    if not layers:
        raise UserError(f"layers=[] names no layer; the model has {', '.join(found)}")
    for path, layer in layers_at(model, layers).items():
        if path not in found:
            raise UserError(
                f"the layer at {path} has {layer.attend.name} attention; only Sinkhorn layers can "
                f"be compiled: {', '.join(found)}"
            )
    return [path for path in found if path in layers]


def check_whole_numbers(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name}={value!r} has the wrong type; it must be a whole number")


def check_more(given: Mapping[str, Any]) -> None:
    """Refuses a keyword that is no step with settings and no feature, or has another type."""
    steps = with_settings()
    for name, value in given.items():
        if name in FURTHER_FEATURES:
            check_switches(**{name: value})
            continue
        if name not in steps:
            raise TypeError(
                f"compile() takes no keyword {name!r}; the steps with settings are "
                f"{', '.join(steps)}"
            )
        wanted = type(steps[name].settings)
        if not isinstance(value, wanted):
            keys = ", ".join(f"{field.name}=..." for field in fields(wanted))
            raise UserError(
                f"{name}={value!r} has the wrong type; it must be {wanted.__name__}({keys})"
            )


def check_switches(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r} has the wrong type; it must be True or False")


def check_numbers(**given: Any) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise UserError(f"{name}={value!r} has the wrong type; it must be a number")


def check_names(name: str, given: Sequence[str]) -> None:
    """Refuse a single string in place of a list of names, which would be split into letters."""
    if isinstance(given, str):
        raise UserError(f"{name}={given!r} must be a list of names, for example [{given!r}]")
    if not isinstance(given, Iterable) or not all(isinstance(each, str) for each in given):
        raise UserError(f"{name}={given!r} must be a list of names")
