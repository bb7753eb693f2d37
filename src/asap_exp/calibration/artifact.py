"""A compiled map on disk: `asap.safetensors` and, beside it, `asap.json` that says whose it is."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from asap_exp.attention import (
    AsapAttention,
    Attention,
    SinkhornAttention,
    attention_class,
    attention_config,
    attention_layers,
    build_attention,
    without_younger,
)
from asap_exp.attention.layer import STATED, check_complete
from asap_exp.attention.learned import LearnedAttention
from asap_exp.calibration.identity import MapIdentity
from asap_exp.core.errors import UserError
from asap_exp.core.escaping import one_line
from asap_exp.core.files import read_json
from asap_exp.core.records.fidelity import fidelity_digest, read_fidelity, write_fidelity
from asap_exp.core.records.identity import Identity
from asap_exp.core.sealed import SEAL, check_seal, write_sealed
from asap_exp.core.tensors import fingerprint, load_tensors, save_tensors
from asap_exp.core.typed import Newer, check_format, from_json, made
from asap_exp.ops import SlicedMap
from asap_exp.ops.sliced_map import MAP_TENSORS

FORMAT = 2
DISTILL = "python -m asap_exp.distill"
TENSORS, IDENTITY = "asap.safetensors", "asap.json"
LAYERS = "teacher_layers"
QUERY_ONLY, QUERY_ONLY_RELAXATION = "query_only_weight", "query_only_relaxation"


@dataclass
class Artifact:
    """`tensors` holds, for each layer PATH that became ASAP,

    PATH.FIELD for each field of `SlicedMap` that the map has, PATH.query_only_weight `[H, D + 1]`
    and maybe PATH.query_only_relaxation `[H]`: the control with no slices. Of a layer that became
    another attention with parameters it holds those. The identity's `attentions` says for every
    compiled layer what it became: `{name, **options}`.
    """

    identity: dict[str, Any]
    """Content of asap.json, as it is compared and hashed; `about` is the same, typed."""
    tensors: dict[str, Tensor]
    before: "Artifact | None" = None
    """In a compiled model, of layers that an earlier call made otherwise; it is on no disk."""

    @cached_property
    def about(self) -> Identity:
        return made(MapIdentity, self.identity, Path(IDENTITY))

    @property
    def layers(self) -> list[str]:
        return self.about.layers

    def attention(self, path: str) -> Attention:
        """Build the compiled attention of the layer at `path`."""
        map = SlicedMap.of({name: self.tensors.get(f"{path}.{name}") for name in MAP_TENSORS})
        return self._built(path, map)

    def zero_weights(self, path: str) -> Attention:
        """Build the control with all weights zero: truncated Sinkhorn at the same refine.

        Its updates are relaxed as the map's are.
        """
        zero = self.attention(path)
        if isinstance(zero, AsapAttention):
            for name, tensor in zero.named_parameters():
                if name not in ("theta", "relaxation"):
                    tensor.zero_()
        return zero

    def unfitted(self, path: str) -> Attention:
        """Build the control of an imitation: the same attention as it was before its fit."""
        return build_attention(dict(self.identity["attentions"][path]))

    def query_features_only(self, path: str) -> Attention:
        """Build the control with query features and no slices."""
        control = {
            "query_weight": self.tensors.get(f"{path}.{QUERY_ONLY}"),
            "relaxation": self.tensors.get(f"{path}.{QUERY_ONLY_RELAXATION}"),
        }
        for name in ("theta", "weight"):
            whole = self.tensors.get(f"{path}.{name}")
            control[name] = None if whole is None else whole[:, :0]
        return self._built(path, SlicedMap.of(control))

    def _built(self, path: str, map: SlicedMap) -> Attention:
        """ASAP with `map` where the layer became ASAP; any other layer is its own control."""
        options = dict(self.identity["attentions"][path])
        if options["name"] != AsapAttention.name:
            attend = build_attention(options)
            if isinstance(attend, LearnedAttention):
                attend.take({x: self.tensors[f"{path}.{x}"] for x in attend.parameter_names})
            return attend
        del options["name"]
        if map.coarse_weight is None:
            options.pop("coarse", None)  # read by the coarse dual alone, which a control lacks
        return AsapAttention(**{**map.map(Tensor.clone)._asdict(), **options})


def make_artifact(
    attends: Mapping[str, Attention],
    controls: Mapping[str, AsapAttention],
    identity: Mapping[str, Any],
) -> Artifact:
    """Build the artifact of compiled layers by path; `controls` have query features alone."""
    tensors: dict[str, Tensor] = {}
    for path, attend in attends.items():
        if isinstance(attend, LearnedAttention):
            tensors |= {f"{path}.{name}": tensor for name, tensor in attend.named_parameters()}
        if isinstance(attend, AsapAttention):
            tensors |= {f"{path}.{name}": tensor for name, tensor in attend.named_parameters()}
            control = dict(controls[path].named_parameters())
            tensors[f"{path}.{QUERY_ONLY}"] = control["query_weight"]
            if "relaxation" in control:
                tensors[f"{path}.{QUERY_ONLY_RELAXATION}"] = control["relaxation"]
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    return Artifact(
        {
            "format": FORMAT,
            **identity,
            "layers": list(attends),
            "attentions": {path: attention_config(attend) for path, attend in attends.items()},
            "tensors_sha256": fingerprint(tensors),
        },
        tensors,
    )


def teacher_layers(
    net: nn.Module, kind: type[Attention] = SinkhornAttention
) -> dict[str, dict[str, Any]]:
    """Describe each layer of `net` with attention of this kind, to which one is fitted, by path.

    UserError if a layer does not say how many heads it has, and of what size.
    """
    layers = attention_layers(net)
    for path, layer in layers.items():
        check_complete(layer, path)
    return {
        path: {
            "attention": attention_config(layer.attend),
            "heads": layer.num_heads,
            "head_dim": layer.head_dim,
        }
        for path, layer in layers.items()
        if isinstance(layer.attend, kind)
    }


def layers_fingerprint(net: nn.Module, paths: Iterable[str]) -> str:
    """Hash the weights of the attention layers at `paths`, without those of their attention."""
    layers = attention_layers(net)
    return fingerprint(
        {
            f"{path}.{name}": tensor
            for path in paths
            if path in layers
            for name, tensor in layers[path].state_dict().items()
            if not name.startswith(("attend.", STATED))
        }
    )


def save_artifact(
    folder: Path, artifact: Artifact, fidelity: Sequence[dict[str, Any]] | None = None
) -> None:
    """Write the map, and `fidelity` beside it, whose hash the identity then holds."""
    identity = artifact.identity
    if fidelity is not None:
        identity = {**identity, "fidelity_sha256": fidelity_digest(fidelity)}
        write_fidelity(folder, fidelity)
    made(MapIdentity, identity, folder / IDENTITY)
    save_tensors(folder / TENSORS, artifact.tensors)
    write_sealed(folder / IDENTITY, identity)


def load_artifact(folder: Path) -> Artifact:
    """Return the artifact in `folder`, and end an error with the command that makes it again.

    Raises UserError if a file is missing or damaged, or if the two do not belong together.
    """
    with made_again(folder):
        return read_artifact(folder)


@contextmanager
def made_again(folder: Path, otherwise: str | None = None) -> Iterator[None]:
    """End a UserError about the files in `folder` with the command that makes them again.

    Where none is known it ends with `otherwise`, or else with the command of any map.
    """
    try:
        yield
    except Newer:
        raise
    except UserError as error:
        command = known_command(folder)
        advice = otherwise if command is None else None
        advice = advice or f"It is made again by: {command or DISTILL}"
        raise UserError(f"{str(error).rstrip('.')}. {advice}") from error


def known_command(folder: Path) -> str | None:
    """Return the command in a map's manifest, or that which makes a map of this run, or None."""
    try:
        manifest = read_json(folder / "manifest.json")
    except UserError:
        manifest = None
    command = manifest.get("command") if isinstance(manifest, dict) else None
    if isinstance(command, str) and command.startswith(DISTILL):
        return one_line(command)
    run = folder.absolute().parent.parent
    of_run = folder.absolute().parent.name == "distill" and (run / "config.yaml").exists()
    return f"{DISTILL} {shlex.quote(f'teacher={run}')}" if of_run else None


def read_artifact(folder: Path) -> Artifact:
    """Return the artifact in `folder`; UserError as `load_artifact` has it, without advice."""
    file = folder / IDENTITY
    identity = read_json(file)
    version = identity.get("format") if isinstance(identity, dict) else None
    if isinstance(identity, dict):
        check_format(identity, FORMAT, file, "map")
    if version != FORMAT:
        raise UserError(f"{file} has format {version}; this version reads {FORMAT}")
    if SEAL not in identity:
        raise UserError(
            f"{file} was changed, or is older than this check: it lacks {SEAL}, the hash of its "
            "contents. Use an unchanged copy"
        )
    check_seal(identity, file)
    identity = {key: value for key, value in identity.items() if key != SEAL}
    about = from_json(MapIdentity, identity, file)
    tensors = load_tensors(folder / TENSORS)
    if fingerprint(tensors) != about.tensors_sha256 or not describes(about, tensors):
        raise UserError(
            f"{folder / TENSORS} is not the file that {file} describes; use the one saved with it"
        )
    return Artifact(identity, tensors)


def describes(about: Identity, tensors: Mapping[str, Tensor]) -> bool:
    """Return True if there are tensors for every layer that has parameters and for no other."""
    assert about.attentions is not None, "of a map of this format"
    needed = {path: needed_by(str(to["name"])) for path, to in about.attentions.items()}
    names = {f"{path}.{name}" for path, own in needed.items() for name in own}
    paths = {path for path, own in needed.items() if own}
    return names <= tensors.keys() and {name.rpartition(".")[0] for name in tensors} == paths


def needed_by(attention: str) -> tuple[str, ...]:
    """Return the names of the tensors that a layer needs that became this attention."""
    cls = attention_class(attention)
    if issubclass(cls, LearnedAttention):
        return cls.parameter_names
    return ("theta", "weight", QUERY_ONLY) if cls is AsapAttention else ()


def load_fidelity(folder: Path, artifact: Artifact) -> list[dict[str, Any]]:
    """Read the rows of `artifact` in `folder`; UserError if damaged or of another map."""
    about = artifact.about
    assert about.heads is not None, "of a map that distill made"
    with made_again(folder):
        # Nothing was measured where nothing was fitted.
        layers = about.layers if about.calibration.fitted else []
        return read_fidelity(folder, layers, about.heads, about.fidelity_sha256)


def check_belongs(artifact: Artifact, teacher: dict[str, Any], folder: Path) -> None:
    """Refuses an artifact that was fitted to another teacher, and says what differs."""
    identity = {**artifact.identity, LAYERS: layers_of(artifact)}
    differences = [
        line
        for key, value in teacher.items()
        if identity.get(key) != value
        for line in (
            layer_differences(identity[key], value)
            if key == LAYERS
            else [f"{key}: the artifact's {identity.get(key)}, the teacher's {value}"]
        )
    ]
    if differences:
        advice = "Distill this teacher, or evaluate the artifact's own"
        raise other_teacher(folder, differences, advice)


def other_teacher(folder: Path, differences: Sequence[str], advice: str) -> UserError:
    """Return the UserError that names what differs, a line each, and what to do."""
    lines = [f"{folder} was fitted to another teacher:", *differences]
    return UserError("\n  ".join(lines) + f"\n{advice}")


def layers_of(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Return the teacher's layers as `teacher_layers` describes them today."""
    return {
        path: {**layer, "attention": without_younger(layer["attention"])}
        for path, layer in (artifact.identity.get(LAYERS) or {}).items()
    }


def layer_differences(
    of_map: Mapping[str, dict[str, Any]],
    of_model: Mapping[str, dict[str, Any]],
    instead: Callable[[str], str] = lambda path: "no such layer",
) -> list[str]:
    """Say how the layers of a map's teacher and of a model differ, equal ones in one line.

    `instead(path)` says what the model has where it has no such attention.
    """
    found: dict[str, list[str]] = {}
    for path in dict.fromkeys([*of_map, *of_model]):
        wanted, layer = of_map.get(path), of_model.get(path)
        if wanted == layer:
            continue
        if wanted is None or layer is None:
            theirs = "no such layer" if wanted is None else words_of(wanted["attention"])
            own = instead(path) if layer is None else words_of(layer["attention"])
            line = f"the map's teacher has {theirs}, this model {own}"
        else:
            pairs = unequal(plain(wanted), plain(layer))
            line = "; ".join(f"{k}={a} in the map, {b} in this model" for k, a, b in pairs)
        found.setdefault(line, []).append(path)
    return [f"{', '.join(paths)}: {line}" for line, paths in found.items()]


def plain(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a layer's attention beside its other keys."""
    return {**layer["attention"], **{key: x for key, x in layer.items() if key != "attention"}}


def unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the keys in which two mappings differ, with both values."""
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def words_of(config: Mapping[str, Any]) -> str:
    """Return `{name, **options}` in words."""
    named = ", ".join(f"{key}={value}" for key, value in config.items() if key != "name")
    return f"{config['name']} attention ({named})" if named else f"{config['name']} attention"
