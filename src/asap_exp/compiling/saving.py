"""Compiled maps on disk and in a state_dict, and the models that they belong to."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import (
    AsapAttention,
    Attention,
    CoarseAttention,
    attention_class,
    attention_layers,
    build_attention,
    swap_attention,
)
from asap_exp.attention.asap import options_in
from asap_exp.attention.base import config_in
from asap_exp.attention.layer import STATED
from asap_exp.attention.learned import LearnedAttention
from asap_exp.attention.swapping import layers_at
from asap_exp.calibration.artifact import (
    Artifact,
    layers_fingerprint,
    made_again,
    read_artifact,
    save_artifact,
    teacher_layers,
)
from asap_exp.calibration.capture import IN_FULL
from asap_exp.compiling.arguments import check_has_weights
from asap_exp.compiling.belonging import check_fits
from asap_exp.compiling.merging import joined
from asap_exp.compiling.present import holder_of, present_artifact
from asap_exp.compiling.wrappers import check_model, check_names, unwrapped
from asap_exp.core.devices import device_of
from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.locations import ELSEWHERE
from asap_exp.core.plugins import MODULE
from asap_exp.core.tensors import fingerprint
from asap_exp.core.typed import SHOWN, Newer
from asap_exp.ops import SlicedMap
from asap_exp.ops.backend import BACKENDS
from asap_exp.ops.sliced_map import MAP_TENSORS

MADE_BY = "asap_exp.save_compiled writes such a folder, of a model that asap_exp.compile returns"
IN_PYTHON = {
    IN_FULL: 'take precision="32-true"',
    ELSEWHERE: "choose another folder",
    f"name the module that registers it: attention.{MODULE}=MODULE": "import the module it is in",
}
SETTINGS = "_extra_state"
"""Torch's name, in a state_dict, for what an attention says beside its tensors."""


def save_compiled(model: nn.Module, folder: str | Path) -> None:
    """Write the map in `model`, asap.safetensors and asap.json, into `folder`.

    It is the map as it is now, trained or not. The model's other weights are not included:
    `load_compiled` takes them from the teacher.

    Layers of several calls of `compile` are written if batches and options of these were the same.

    Raises UserError if the folder could not bring the model back: if its attention layers' own
    weights are no longer the teacher's, hold another attention than `compile` gave or left them,
    or are of calls that differ.
    """
    artifact = artifact_of(model)
    place = folder_in(folder, "folder")
    present = present_artifact(holder_of(model) or model, artifact)
    with in_words_of_the_library():
        save_artifact(place, present)


@contextmanager
def in_words_of_the_library() -> Iterator[None]:
    """Give advice on the arguments of functions in place of that on the command line."""
    try:
        yield
    except Newer:
        raise
    except UserError as error:
        words = str(error)
        for command_line, python in IN_PYTHON.items():
            words = words.replace(command_line, python)
        if words == str(error):
            raise
        raise UserError(words) from error


def folder_in(given: Any, name: str) -> Path:
    """Return the folder that an argument names; UserError if it is no path, empty, or a file."""
    if not is_path(given) or not os.fspath(given):
        raise UserError(
            f"{name} must be the path of a folder, such as 'compiled'; got {shown(given)}"
        )
    if Path(given).is_file():
        raise UserError(f"{name}={str(given)!r} is a file; give a folder")
    return Path(given)


def check_source(source: Any) -> None:
    """Raise UserError unless `source` is a path or a state_dict."""
    if not is_path(source) and not isinstance(source, Mapping):
        hint = ""
        if isinstance(source, nn.Module):
            hint = ": load_compiled(model, compiled.state_dict())"
        raise UserError(
            "source must be a folder that save_compiled wrote, or the state_dict of a compiled "
            f"model{hint}; got {shown(source)}"
        )
    if is_path(source) and Path(source).is_file():
        raise UserError(
            f"source={str(source)!r} is a file; give the folder that save_compiled wrote, or, of a "
            f"file with a state_dict, torch.load({str(source)!r})"
        )


def is_path(given: Any) -> bool:
    return isinstance(given, str | os.PathLike) and isinstance(os.fspath(given), str)


def shown(value: Any) -> str:
    """Return a value as Python writes it, or its type where that is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"a value of type {type(value).__name__}"


@torch.inference_mode(False)
def load_compiled(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], *, backend: str = "auto"
) -> nn.Module:
    """Return a copy of `model`, in evaluation mode and frozen, compiled as `source` says.

    `source` is a folder, written by `save_compiled` or `python -m asap_exp.distill`, or the
    state_dict of a compiled model. A folder's map belongs to the weights of the layers that it
    compiles: the rest of `model`, such as its head, may have changed, and `drift` says whether the
    map still fits. A state_dict holds all weights, so that those of `model` may be on the meta
    device, but not what `drift` and `save_compiled` need. One of an older version does not tell of
    coarse layers.

    Raises UserError if files are missing or damaged, or were made from another teacher.
    """
    check_model(model, "load_compiled")
    check_choice("backend", backend, BACKENDS)
    check_source(source)
    if isinstance(source, Mapping):
        check_names(source, model)
        return from_state(model, source, backend)
    check_has_weights(model)
    folder = folder_in(source, "source")
    with in_words_of_the_library(), made_again(folder, MADE_BY):
        artifact = read_artifact(folder)
    check_fits(artifact, model, folder)
    compiled = copy.deepcopy(model).eval().requires_grad_(False)
    attends = {path: artifact.attention(path).to(device_of(model)) for path in artifact.layers}
    swap_attention(compiled, attends)
    remember(compiled, artifact, backend)
    return compiled


def from_state(model: nn.Module, state: Mapping[str, Tensor], backend: str) -> nn.Module:
    """Build the compiled layers that `state` tells of, and load it."""
    compiled = with_memory(model, state).eval()
    layers = attention_layers(compiled)
    attends = {path: attend for path in layers if (attend := attention_in(state, path))}
    if not attends:
        raise UserError(
            f"the state_dict holds no compiled layer of this {type(model).__name__}, whose layers "
            f"of attention are {', '.join(layers) or 'none'}; of coarse layers, which have no "
            "tensor, older versions wrote nothing: load them from a folder"
        )
    place = device_of(compiled)
    swap_attention(compiled, attends)
    state_layers(compiled, attends, backend)
    compiled.__dict__.pop("asap_artifact", None)  # of other maps, in a model compiled before
    try:
        compiled.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the state_dict is of another model: {error}") from error
    return compiled.requires_grad_(False).to(place)


def with_memory(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Copy `model`, with memory for what it has on the meta device and a state_dict holds."""
    for name, x in state.items():
        if isinstance(x, Tensor) and x.is_meta:
            raise UserError(
                f"the state_dict has no values: {name} is on the meta device. Take that of a model "
                "whose weights are there"
            )
    # What deepcopy takes for the copy of an original, by its id; so tied weights stay tied.
    copies: dict[int, Any] = {}
    for name, x in model.state_dict(keep_vars=True).items():
        if isinstance(x, Tensor) and x.is_meta and id(x) not in copies:
            device = state[name].device if name in state else "cpu"
            empty = torch.empty_like(x, device=device)
            copies[id(x)] = nn.Parameter(empty) if isinstance(x, nn.Parameter) else empty
    copied = copy.deepcopy(model, copies)
    check_has_weights(copied, "no state_dict holds it: build the model with memory for it")
    return copied


def attention_in(state: Mapping[str, Tensor], path: str) -> Attention | None:
    """Build the compiled attention that `state` has at `path`; None if it tells of none there."""
    layer = f"{path}." if path else ""
    inner = f"{layer}attend."
    if f"{inner}theta" in state:
        if f"{inner}{SETTINGS}" not in state:
            raise UserError(
                f"the state_dict does not say how often {path} refines its plans: it was saved by "
                "an older version. Load the map from its folder"
            )
        map = SlicedMap.of({name: state.get(f"{inner}{name}") for name in MAP_TENSORS})
        options = options_in(state[f"{inner}{SETTINGS}"])
        try:
            return AsapAttention(**{**map.map(Tensor.clone)._asdict(), **options})
        except (AttributeError, ValueError, TypeError) as error:
            raise UserError(f"the state_dict is damaged: at {path}, {error}") from error
    if f"{layer}{STATED}" not in state:
        return None
    key = f"{layer}{STATED}"
    config = config_in(state[key], key)
    with in_words_of_the_library():
        if attention_class(config["name"]).needs_calibration:
            raise UserError(f"the state_dict is damaged: {key} is of a map, and has no theta")
        attend = build_attention(config)
    if isinstance(attend, LearnedAttention):
        names = (name for name in attend.parameter_names if f"{inner}{name}" in state)
        attend.take({name: state[f"{inner}{name}"] for name in names})
    return attend


def remember(compiled: nn.Module, artifact: Artifact, backend: str) -> None:
    """Keep `artifact` in `compiled`, beside what the model that it was copied from had."""
    state_layers(compiled, artifact.layers, backend)
    earlier = compiled.__dict__.get("asap_artifact")
    compiled.asap_artifact = joined(compiled, earlier, artifact)  # type: ignore[assignment]


def state_layers(compiled: nn.Module, paths: Iterable[str], backend: str) -> None:
    """Let a state_dict say what the layers at `paths` are; give their attention the backend."""
    for layer in layers_at(compiled, paths).values():
        layer.stated = True
        if isinstance(layer.attend, AsapAttention | CoarseAttention):
            layer.attend.backend = backend


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
