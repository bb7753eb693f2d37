"""Compiled maps on disk and in a state_dict, and the models that they belong to."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import (
    AsapAttention,
    CoarseAttention,
    SinkhornAttention,
    SoftmaxAttention,
    attention_layers,
    swap_attention,
)
from asap_exp.attention.asap import options_in
from asap_exp.attention.swapping import layers_at
from asap_exp.calibration.artifact import (
    Artifact,
    check_belongs,
    layers_fingerprint,
    load_artifact,
    save_artifact,
    teacher_layers,
)
from asap_exp.compiling.arguments import check_has_weights
from asap_exp.compiling.present import holder_of, present_artifact
from asap_exp.compiling.wrappers import check_model, check_names, unwrapped
from asap_exp.core.devices import device_of
from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.tensors import fingerprint
from asap_exp.ops import SlicedMap
from asap_exp.ops.backend import BACKENDS
from asap_exp.ops.sliced_map import MAP_TENSORS

SETTINGS = "attend._extra_state"


def save_compiled(model: nn.Module, folder: str | Path) -> None:
    """Write the map in `model`, asap.safetensors and asap.json, into `folder`.

    It is the map as it is now, trained or not. The model's other weights are not included:
    `load_compiled` takes them from the teacher.

    Raises UserError if the folder could not bring the model back: if its attention layers' own
    weights are no longer the teacher's, or hold another attention than `compile` gave them.
    """
    artifact = artifact_of(model)
    save_artifact(Path(folder), present_artifact(holder_of(model) or model, artifact))


@torch.inference_mode(False)
def load_compiled(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], *, backend: str = "auto"
) -> nn.Module:
    """Return a copy of `model`, in evaluation mode and frozen, compiled as `source` says.

    `source` is a folder, written by `save_compiled` or `python -m asap_exp.distill`, or the
    state_dict of a compiled model. A folder's map belongs to the weights of the layers that it
    compiles: the rest of `model`, such as its head, may have changed, and `drift` says whether the
    map still fits. A state_dict holds all weights, but not what `drift` and `save_compiled` need.

    Raises UserError if files are missing or damaged, or were made from another teacher.
    """
    check_model(model, "load_compiled")
    check_choice("backend", backend, BACKENDS)
    if isinstance(source, Mapping):
        check_names(source, model)
        return from_state(model, source, backend)
    check_has_weights(model)
    artifact = load_artifact(Path(source))
    check_fits(artifact, model, Path(source))
    compiled = copy.deepcopy(model).eval().requires_grad_(False)
    attends = {path: artifact.attention(path).to(device_of(model)) for path in artifact.layers}
    swap_attention(compiled, attends)
    remember(compiled, artifact, backend)
    return compiled


def from_state(model: nn.Module, state: Mapping[str, Tensor], backend: str) -> nn.Module:
    """Build the compiled layers that `state` has tensors of, and load it."""
    compiled = copy.deepcopy(model).eval()
    attends = {}
    for path in attention_layers(compiled):
        inner = f"{path}." if path else ""
        if f"{inner}attend.theta" not in state:
            continue
        if f"{inner}{SETTINGS}" not in state:
            raise UserError(
                f"the state_dict does not say how often {path} refines its plans: it was saved by "
                "an older version. Load the map from its folder"
            )
        options = options_in(state[f"{inner}{SETTINGS}"])
        tensors = {name: state.get(f"{inner}attend.{name}") for name in MAP_TENSORS}
        map = SlicedMap.of(tensors).map(Tensor.clone)
        attends[path] = AsapAttention(**{**map._asdict(), **options}, backend=backend)
    if not attends:
        raise UserError(
            f"the state_dict holds no compiled layer of this {type(model).__name__}, whose layers "
            f"of attention are {', '.join(attention_layers(model)) or 'none'}; of coarse layers, "
            "which have no tensor, it would hold nothing: load them from a folder"
        )
    swap_attention(compiled, attends)
    try:
        compiled.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the state_dict is of another model: {error}") from error
    return compiled.requires_grad_(False).to(device_of(model))


def remember(compiled: nn.Module, artifact: Artifact, backend: str) -> None:
    for layer in layers_at(compiled, artifact.layers).values():
        if isinstance(layer.attend, AsapAttention | CoarseAttention):
            layer.attend.backend = backend
    compiled.asap_artifact = artifact  # type: ignore[assignment]


def artifact_of(model: nn.Module) -> Artifact:
    """Return the map that `model` was compiled to, with its identity."""
    artifact = getattr(unwrapped(model), "asap_artifact", None)
    if not isinstance(artifact, Artifact):
        raise UserError(
            f"this {type(model).__name__} was not made by asap_exp.compile, or by load_compiled "
            "from a folder; only what they return can be saved or asked for its drift"
        )
    return artifact


def teacher_identity(model: nn.Module, paths: list[str]) -> dict[str, Any]:
    """Return what a map keeps of the model that it was made from."""
    return {
        "teacher_sha256": fingerprint(model.state_dict()),
        "layers_sha256": layers_fingerprint(model, paths),
        "teacher_layers": teacher_layers(model),
    }


def check_fits(artifact: Artifact, model: nn.Module, folder: Path) -> None:
    """Raise UserError unless `model` has the layers, and their weights, that the map is of."""
    advice = "Compile this model, or load the map into the model that it was made of"
    kind = SoftmaxAttention if artifact.about.imitates else SinkhornAttention
    check_belongs(artifact, {"teacher_layers": teacher_layers(model, kind)}, folder, advice)
    key = "layers_sha256"
    if artifact.identity.get(key) is None:
        key = "teacher_sha256"
        advice = f"{advice}. Maps of this version are bound to their layers' weights alone"
        found = fingerprint(model.state_dict())
    else:
        found = layers_fingerprint(model, artifact.layers)
    check_belongs(artifact, {key: found}, folder, advice)
