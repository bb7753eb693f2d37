"""Whether a map in a folder belongs to a model, and if not, what differs and what to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from asap_exp.attention import (
    SinkhornAttention,
    SoftmaxAttention,
    attention_config,
    attention_layers,
)
from asap_exp.calibration.artifact import (
    Artifact,
    layer_differences,
    layers_fingerprint,
    layers_of,
    other_teacher,
    teacher_layers,
    words_of,
)
from asap_exp.core.tensors import fingerprint

SHAPE = ("heads", "head_dim")


def check_fits(artifact: Artifact, model: nn.Module, folder: Path) -> None:
    """Raise UserError unless `model` has the layers, and their weights, that the map is of."""
    layers = attention_layers(model)

    def instead(path: str) -> str:
        if path in layers:
            return words_of(attention_config(layers[path].attend))
        return "no layer that asap_exp.convert made"

    kind = SoftmaxAttention if artifact.about.imitates else SinkhornAttention
    wanted, found = layers_of(artifact), teacher_layers(model, kind)
    if wanted != found:
        differences = layer_differences(wanted, found, instead)
        raise other_teacher(folder, differences, advice_on_layers(model, wanted, found))
    own = artifact.identity.get("layers_sha256")
    whose = f"of {', '.join(artifact.layers)}"
    now = layers_fingerprint(model, artifact.layers)
    advice = "Load into this model the weights that the map was fitted to, or compile it"
    if own is None:
        own, whose = artifact.identity["teacher_sha256"], "of the whole model"
        now = fingerprint(model.state_dict())
        advice = f"{advice}. Maps of this version are bound to their layers' weights alone"
    if now != own:
        raise other_teacher(folder, [f"the weights {whose} are others"], advice)


def advice_on_layers(model: nn.Module, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Say how `model`, which has the layers `found`, gets those that a map is `wanted` for."""
    modules = dict(model.named_modules())
    if any(getattr(modules.get(path), "stated", False) for path in wanted):
        return "This model is compiled already; load the map into the model that it was before"
    kinds = {words_of(layer["attention"]): layer["attention"] for layer in wanted.values()}
    same_place = wanted.keys() >= found.keys() and modules.keys() >= wanted.keys()
    if (
        len(kinds) > 1
        or not same_place
        or any(found[path][key] != wanted[path][key] for path in found for key in SHAPE)
    ):
        return "Compile this model, or load the map into the model that it was made of"
    (config,) = kinds.values()
    more = [f"{name}={x!r}" for name, x in config.items() if name != "name"]
    options = ", ".join([f"attention={config['name']!r}", *more])
    return (
        "If this model was trained with that attention, put it in: "
        f"asap_exp.convert(model, {options}). If not, compile this model"
    )
