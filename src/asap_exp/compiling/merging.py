"""Maps of several calls of `compile` on one model: one artifact, if made the same way."""

from dataclasses import replace

from torch import nn

from asap_exp.attention import attention_layers
from asap_exp.calibration.artifact import Artifact, layers_fingerprint, unequal
from asap_exp.core.tensors import fingerprint

BY_LAYER = ("attentions", "column_error", "teacher_layers")
OF_OTHERS = ("layers", "teacher_sha256", "layers_sha256", "tensors_sha256", *BY_LAYER)
"""Keys of an identity in which the maps of other layers differ."""


def joined(model: nn.Module, earlier: Artifact | None, new: Artifact) -> Artifact:
    """Return `new` with the layers of `model` that `earlier` tells of.

    They become one artifact if both were made the same way; otherwise `earlier` is what came
    before.
    """
    layers = attention_layers(model)
    if earlier is None:
        return new
    became = earlier.identity["attentions"]
    kept = [
        path
        for path in earlier.layers
        if path not in new.layers
        and path in layers
        and layers[path].attend.name == became[path]["name"]
    ]
    if not kept:
        return new if earlier.before is None else replace(new, before=earlier.before)
    if earlier.before is not None or differences(model, earlier, new):
        return replace(new, before=earlier)
    first, second = earlier.identity, new.identity
    paths = [path for path in layers if path in kept or path in new.layers]
    tensors = {
        name: x
        for artifact, of in ((earlier, kept), (new, new.layers))
        for name, x in artifact.tensors.items()
        if name.rpartition(".")[0] in of
    }
    parts = {
        key: {path: first[key][path] for path in kept} | second[key]
        for key in BY_LAYER
        if key in second
    }
    # Of layers that are not compiled, and so may have changed, the second knows more.
    parts["teacher_layers"] = {**first["teacher_layers"], **second["teacher_layers"]}
    identity = {
        **second,
        **parts,
        "layers": paths,
        "teacher_sha256": first["teacher_sha256"],
        "layers_sha256": layers_fingerprint(model, paths),
        "tensors_sha256": fingerprint(tensors),
    }
    return Artifact(identity, tensors)


def differences(model: nn.Module, earlier: Artifact, new: Artifact) -> list[str]:
    """Say in which ways two artifacts, of other layers of `model`, were made differently."""
    first, second = earlier.identity, new.identity
    found = []
    if first.get("layers_sha256") != layers_fingerprint(model, earlier.layers):
        found.append(f"the weights of {', '.join(earlier.layers)}, trained between them")
    recipes = first["calibration"], second["calibration"]
    if earlier.about.calibration.fitted != new.about.calibration.fitted:
        return [*found, "method"]
    found += [f"{key} ({a}, {b})" for key, a, b in unequal(*recipes) if key != "name"]
    rest = [key for key, _, _ in unequal(first, second) if key not in (*OF_OTHERS, "calibration")]
    if "calibration_set" in rest:
        found.append("their batches")
    return found or rest
