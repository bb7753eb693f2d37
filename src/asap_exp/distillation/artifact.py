"""A compiled map on disk: `asap.safetensors` and, beside it, `asap.json` that says whose it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asap_exp.attention import AsapAttention
from asap_exp.errors import UserError
from asap_exp.files import read_json, write_json
from asap_exp.tensors import fingerprint, load_tensors, save_tensors

FORMAT = 1
TENSORS, IDENTITY = "asap.safetensors", "asap.json"


@dataclass
class Artifact:
    """`tensors` holds, for each compiled layer PATH,

    PATH.theta `[H, L, D]`, PATH.weight `[H, L]`, PATH.query_weight `[H, D + 1]` where the map has
    query features, and PATH.query_only_weight `[H, D + 1]`: the control with no slices.
    """

    identity: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def layers(self) -> list[str]:
        return self.identity["layers"]

    def attention(self, path: str) -> AsapAttention:
        """The compiled attention of the layer at `path`."""
        query_weight = self.tensors.get(f"{path}.query_weight")
        return AsapAttention(
            self.tensors[f"{path}.theta"].clone(),
            self.tensors[f"{path}.weight"].clone(),
            None if query_weight is None else query_weight.clone(),
            refine=self.identity["refine"],
            eps=self.identity["eps"],
        )

    def zero_weights(self, path: str) -> AsapAttention:
        """The control with all weights zero: truncated Sinkhorn at the same refine."""
        zero = self.attention(path)
        zero.weight.zero_()
        if zero.query_weight is not None:
            zero.query_weight.zero_()
        return zero

    def query_features_only(self, path: str) -> AsapAttention:
        """The control with query features and no slices."""
        theta, weight = self.tensors[f"{path}.theta"], self.tensors[f"{path}.weight"]
        return AsapAttention(
            theta[:, :0].clone(),
            weight[:, :0].clone(),
            self.tensors[f"{path}.query_only_weight"].clone(),
            refine=self.identity["refine"],
            eps=self.identity["eps"],
        )


def save_artifact(folder: Path, artifact: Artifact) -> None:
    identity = {
        "format": FORMAT,
        **artifact.identity,
        "tensors_sha256": fingerprint(artifact.tensors),
    }
    save_tensors(folder / TENSORS, artifact.tensors)
    write_json(folder / IDENTITY, identity)


def load_artifact(folder: Path) -> Artifact:
    """UserError where a file is missing or damaged, or the two do not belong together."""
    identity = read_json(folder / IDENTITY)
    if identity.get("format") != FORMAT:
        raise UserError(
            f"{folder / IDENTITY} has format {identity.get('format')}; this version reads {FORMAT}"
        )
    tensors = load_tensors(folder / TENSORS)
    if fingerprint(tensors) != identity.get("tensors_sha256"):
        raise UserError(
            f"{folder / TENSORS} is not the file that {folder / IDENTITY} describes; distill again"
        )
    return Artifact(identity, tensors)


def check_belongs(artifact: Artifact, teacher: dict[str, Any], folder: Path) -> None:
    """Refuses an artifact that was fitted to another teacher, and says what differs."""
    differences = [
        f"{key}: the artifact's {artifact.identity.get(key)}, the teacher's {value}"
        for key, value in teacher.items()
        if artifact.identity.get(key) != value
    ]
    if differences:
        raise UserError(
            f"{folder} was fitted to another teacher:\n  " + "\n  ".join(differences) + "\n"
            "Distill this teacher, or evaluate the artifact's own"
        )
