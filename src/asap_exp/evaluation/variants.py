"""What an evaluation compares: the teacher, and models that differ from it in their attention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from asap_exp.attention import (
    Attention,
    SinkhornAttention,
    SoftmaxAttention,
    UniformAttention,
    attention_layers,
)
from asap_exp.distillation.artifact import Artifact
from asap_exp.distillation.compile import sinkhorn

TRAINED_ALIKE = {"softmax": "softmax", "espformer": "ESPFormer"}
"""Attentions whose models are compared with the teacher where one was trained."""


@dataclass
class Variant:
    """A row of the table: `net` with `replacements` (by layer path) in it.

    `group` is teacher, asap, truncated, control, softmax or espformer. `paths` are the layers that
    the row's plan measures are about; the last of them is the one whose latency is measured.
    """

    key: str
    label: str
    group: str
    net: nn.Module
    paths: list[str]
    replacements: Mapping[str, Attention] = field(default_factory=dict)

    def attends(self) -> dict[str, Attention]:
        """The attention that this row runs in each of its layers."""
        layers = attention_layers(self.net)
        return {path: self.replacements.get(path, layers[path].attend) for path in self.paths}


def variants(
    net: nn.Module, artifact: Artifact, truncations: list[int], twins: Mapping[str, nn.Module]
) -> list[Variant]:
    """Every row, the teacher first; controls and truncations stand in the artifact's layers.

    `twins` are models trained like the teacher, by the name of their attention.
    """
    paths = artifact.layers
    layers = attention_layers(net)
    teacher = sinkhorn(layers[paths[0]])
    device = next(net.parameters()).device
    where = "all layers" if len(paths) == len(layers) else layer_words(paths, layers)

    def row(key: str, label: str, group: str, attends: Mapping[str, Attention]) -> Variant:
        return Variant(key, label, group, net, list(attends), attends)

    def everywhere(make: Callable[[str], Attention]) -> dict[str, Attention]:
        return {path: make(path).to(device) for path in paths}

    def truncated(num_iters: int) -> dict[str, Attention]:
        return everywhere(lambda _: SinkhornAttention(num_iters=num_iters, eps=teacher.eps))

    compiled = everywhere(artifact.attention)
    alone = [(numbers([path], layers), {path: attend}) for path, attend in compiled.items()]
    rows = [
        Variant("teacher", f"Sinkhorn teacher, {teacher.updates}", "teacher", net, paths),
        row("asap", f"ASAP, {where}", "asap", compiled),
    ]
    if len(paths) > 1:
        rows += [
            row(f"asap_layer_{number}", f"ASAP, layer {number} alone", "asap", attends)
            for number, attends in alone
        ]
    rows += [
        row(f"truncated_{T}", f"Sinkhorn, T' = {T}", "truncated", truncated(T))
        for T in truncations
        if teacher.num_iters > T
    ]
    rows += [
        row(
            "control_zero",
            f"control: ASAP, all weights zero, refine {artifact.identity['refine']}",
            "control",
            everywhere(artifact.zero_weights),
        ),
        row(
            "control_query",
            "control: query features, no slices",
            "control",
            everywhere(artifact.query_features_only),
        ),
        row(
            "control_uniform",
            "control: uniform attention",
            "control",
            everywhere(lambda _: UniformAttention()),
        ),
        row(
            "softmax_swapped",
            "row softmax in the teacher's place",
            "softmax",
            everywhere(lambda _: SoftmaxAttention()),
        ),
    ]
    return rows + [
        Variant(
            f"{name}_trained",
            f"{TRAINED_ALIKE[name]}, trained alike",
            name,
            twin,
            list(attention_layers(twin)),
        )
        for name, twin in twins.items()
    ]


def numbers(paths: list[str], layers: Mapping[str, nn.Module]) -> str:
    """Layers by number, in the order of the blocks."""
    order = list(layers)
    return ", ".join(str(order.index(path)) for path in paths)


def layer_words(paths: list[str], layers: Mapping[str, nn.Module]) -> str:
    return f"layer{'s' if len(paths) > 1 else ''} {numbers(paths, layers)}"
