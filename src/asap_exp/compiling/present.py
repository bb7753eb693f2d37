"""What a compiled model holds now, beside what its artifact says that it was compiled to."""

from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import Attention, attention_config, attention_layers, without_younger
from asap_exp.attention.layer import STATED
from asap_exp.calibration.artifact import Artifact, layers_fingerprint, words_of
from asap_exp.compiling.arguments import check_has_weights
from asap_exp.compiling.merging import differences
from asap_exp.core.errors import UserError
from asap_exp.core.tensors import fingerprint

KEEP = (
    "Keep the whole model instead: torch.save(model.state_dict(), file), and "
    "asap_exp.load_compiled(model, torch.load(file))"
)


def holder_of(model: nn.Module) -> nn.Module | None:
    """Return the compiled module: `model`, or the one that it wraps; None without any."""
    for module in model.modules():
        if isinstance(module.__dict__.get("asap_artifact"), Artifact):
            return module
    return None


def present_artifact(model: nn.Module, artifact: Artifact) -> Artifact:
    """Return `artifact` with the tensors that the map in `model` has now.

    UserError if it does not tell what `model` is: if a layer holds another attention, or one that
    another call compiled, or the layers' own weights are not the teacher's.
    """
    check_has_weights(model)
    check_others(model, artifact)
    moved: dict[str, Tensor] = {}
    layers = attention_layers(model)
    for path in artifact.layers:
        kept = artifact.attention(path)
        now = layers[path].attend if path in layers else None
        if now is None or differs(now, kept):
            holds = "no attention layer" if now is None else described(now)
            raise UserError(
                f"at {path} the model holds {holds}, and it was compiled to {described(kept)}; a "
                f"folder would bring that back. {KEEP}"
            )
        before = dict(kept.named_parameters())
        for name, parameter in now.named_parameters():
            tensor = parameter.detach().cpu().to(before[name].dtype)
            if not torch.equal(tensor, before[name]):
                moved[f"{path}.{name}"] = tensor.clone()
    check_own_weights(model, artifact)
    if not moved:
        return artifact
    tensors = {**artifact.tensors, **moved}
    # The rows of fidelity.json are those of the map before it moved.
    identity = {key: x for key, x in artifact.identity.items() if key != "fidelity_sha256"}
    return Artifact({**identity, "tensors_sha256": fingerprint(tensors)}, tensors)


def check_others(model: nn.Module, artifact: Artifact) -> None:
    """Raise UserError if layers that are not in `artifact` have changed, or are compiled too."""
    before = artifact.about.teacher_layers or {}
    layers = {p: x for p, x in attention_layers(model).items() if p not in artifact.layers}
    compiled = [path for path, layer in layers.items() if layer.stated and path not in before]
    if compiled:
        how = "of which no calibration is known"
        if artifact.before is not None:
            how = f"which differ in {', '.join(differences(model, artifact.before, artifact))}"
        raise UserError(
            f"{', '.join(compiled)} and {', '.join(artifact.layers)} were compiled in several "
            f"calls, {how}, and a folder holds what one call made. Compile all of them in one, "
            f"with layers=[...], or with the same batches and options. {KEEP}"
        )
    for path, layer in layers.items():
        had = without_younger(before[path].attention) if path in before else None
        if had is not None and attention_config(layer.attend) != had:
            raise UserError(
                f"at {path}, which is not compiled, the model holds {described(layer.attend)}, "
                f"and its teacher has {words_of(had)}; a folder would not bring it back. Put it "
                "into the teacher and compile that"
            )


def differs(now: Attention, kept: Attention) -> bool:
    """Return True unless both are the same attention, up to the values of its parameters."""
    return type(now) is not type(kept) or described(now) != described(kept)


def described(attend: Attention) -> str:
    """Return an attention's name, options and shapes of parameters."""
    config: dict[str, Any] = attention_config(attend)
    return words_of(config | {x: list(p.shape) for x, p in sorted(attend.named_parameters())})


def check_own_weights(model: nn.Module, artifact: Artifact) -> None:
    """Raise UserError unless the compiled layers have the weights that the map was fitted to."""
    wanted = artifact.identity.get("layers_sha256")
    if wanted is not None:
        found = layers_fingerprint(model, artifact.layers)
        whose = f"the weights of its attention layers ({', '.join(artifact.layers)})"
    else:  # an older map, of the whole teacher
        wanted, whose = artifact.identity["teacher_sha256"], "its weights"
        of_maps = tuple(f"{x}.{part}" for x in artifact.layers for part in ("attend.", STATED))
        found = fingerprint(
            {
                name: tensor
                for name, tensor in model.state_dict().items()
                if not name.startswith(of_maps)
            }
        )
    if found != wanted:
        raise UserError(
            f"{whose} are not those that the model was compiled with: they were trained or cast "
            f"since. A folder holds the map alone, for a model with those weights. {KEEP}"
        )
