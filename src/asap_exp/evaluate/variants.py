"""Variants that an evaluation compares: the teacher, and models with other attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from asap_exp.attention import (
    Attention,
    CoarseAttention,
    SinkhornAttention,
    SoftmaxAttention,
    UniformAttention,
    attention_config,
    attention_layers,
)
from asap_exp.calibration.artifact import Artifact
from asap_exp.calibration.config import CoarseKeys
from asap_exp.calibration.truncation import Truncation, shorter
from asap_exp.core.conf_files import attentions
from asap_exp.core.records.evaluation import OTHER_MAP, MapPoint
from asap_exp.core.records.identity import AttentionConfig, CoarseRecipe
from asap_exp.core.records.row import RowGroup
from asap_exp.core.records.words import (
    ONE_PASS,
    coarse_duals_label,
    coarse_label,
    imitation_word,
    map_label,
    other_label,
    update_words,
)
from asap_exp.core.runs import drop_keys, short_hash
from asap_exp.core.typed import to_json

COARSE: RowGroup = "coarse"
MATCHED_BASELINES: dict[RowGroup, str] = {
    "softmax": "softmax",
    "espformer": "ESPFormer",
    COARSE: "coarse duals",
    "relaxed_sinkhorn": "relaxed Sinkhorn",
}
"""Attentions of the matched baselines, which are compared with the teacher if trained."""
RIVALS = {
    "differential": "differential attention",
    "hedgehog": "Hedgehog",
    "lotformer": "LOTFormer",
    "sinkformer": "Sinkformer",
}
"""Further attentions that are, with a row for each choice of their options."""


@dataclass
class Variant:
    """Row of the table: `net` with `replacements` (by layer path) in it.

    `paths` are the layers that the row's plan measures are about; the last of them is the one
    whose latency is measured.
    """

    key: str
    label: str
    group: RowGroup
    net: nn.Module
    paths: list[str]
    replacements: Mapping[str, Attention] = field(default_factory=dict)

    def attends(self) -> dict[str, Attention]:
        """Return the attention that this row runs in each of its layers."""
        layers = attention_layers(self.net)
        return {path: self.replacements.get(path, layers[path].attend) for path in self.paths}


def variants(
    net: nn.Module,
    artifact: Artifact,
    cuts: list[Truncation],
    baselines: Sequence[nn.Module] = (),
) -> list[Variant]:
    """Return every row, the teacher first; controls and truncations replace the artifact's layers.

    `baselines` are models trained like the teacher with another attention (`MATCHED_BASELINES`).
    """
    paths = artifact.layers
    layers = attention_layers(net)
    taught = layers[paths[0]].attend
    teacher = taught if isinstance(taught, SinkhornAttention) else None  # else softmax
    device = next(net.parameters()).device
    where = "all layers" if len(paths) == len(layers) else layer_words(paths, layers)

    def row(key: str, label: str, group: RowGroup, attends: Mapping[str, Attention]) -> Variant:
        return Variant(key, label, group, net, list(attends), attends)

    def everywhere(make: Callable[[str], Attention]) -> dict[str, Attention]:
        return {path: make(path).to(device) for path in paths}

    def truncated(truncation: Truncation, eps: float) -> dict[str, Attention]:
        return everywhere(lambda _: truncation.attention(eps))

    about = artifact.about
    made, kind = about.calibration, group_of(artifact)
    zero = f"{method_word(artifact)}, all weights zero"
    if about.budget or update_words(made) != ONE_PASS:
        zero += f", {'refine by layer' if about.budget else update_words(made)}"
    name = method_word(artifact)
    if about.budget:
        name = other_label(about) or "by budget"
    compiled = everywhere(artifact.attention)
    became = about.budget.layers if about.budget else {}
    alone = [
        (numbers([path], layers), became[path].became if became else name, {path: attend})
        for path, attend in compiled.items()
    ]
    rows = [
        Variant("teacher", teacher_words(taught), "teacher", net, paths),
        row("asap", f"{name}, {where}", kind, compiled),
    ]
    if len(paths) > 1:
        rows += [
            row(f"asap_layer_{number}", f"{what}, layer {number} alone", kind, attends)
            for number, what, attends in alone
        ]
    if teacher is not None:
        rows += [
            row(f"{cut.group}_{cut.num_iters}", cut.label, cut.group, truncated(cut, teacher.eps))
            for cut in shorter(cuts, teacher.num_iters)
        ]
    if about.imitates:
        before = f"control: {method_word(artifact)} before its fit"
        rows.append(row("control_unfitted", before, "control", everywhere(artifact.unfitted)))
    elif has_control(artifact):
        rows += [
            row(
                "control_zero",
                f"control: {zero}",
                "control",
                everywhere(artifact.zero_weights),
            ),
            row(
                "control_query",
                "control: query features, no slices",
                "control",
                everywhere(artifact.query_features_only),
            ),
        ]
    rows += [
        row(
            "control_uniform",
            "control: uniform attention",
            "control",
            everywhere(lambda _: UniformAttention()),
        )
    ]
    if teacher is not None:
        rows.append(
            row(
                "softmax_swapped",
                "row softmax in the teacher's place",
                "softmax",
                everywhere(lambda _: SoftmaxAttention()),
            )
        )
    num_iters = None if teacher is None else teacher.num_iters
    return rows + [trained(baseline, num_iters) for baseline in baselines]


def teacher_words(attend: Attention) -> str:
    """Describe the teacher of this attention."""
    if isinstance(attend, SinkhornAttention):
        return f"Sinkhorn teacher, {attend.updates}"
    return f"{attend.name} teacher"


def method_word(artifact: Artifact) -> str:
    """Return what layers became, in a word or, of coarse duals, with their settings."""
    about = artifact.about
    if about.imitates:
        return imitation_word(about)
    if not about.calibration.fitted:
        return coarse_label(about.calibration)
    return f"ASAP in {ONE_PASS}" if update_words(about.calibration) == ONE_PASS else "ASAP"


def trained(net: nn.Module, num_iters: int | None) -> Variant:
    """Return the row of a model trained like its teacher, of `num_iters` updates if any.

    Coarse duals of another size or form are another method, which the key and the label say.
    """
    layers = attention_layers(net)
    attend = next(iter(layers.values())).attend
    if attend.name in RIVALS:
        label = f"{rival_words(attend)}, trained alike"
        return Variant(rival_key(attend), label, "rival", net, list(layers))
    group: RowGroup = attend.name  # type: ignore[assignment]  # of MATCHED_BASELINES
    key, words = f"{group}_trained", MATCHED_BASELINES[group]
    if isinstance(attend, CoarseAttention):
        key = f"coarse_{short_hash(attention_config(attend))}_trained"
        words = trained_words(attend, num_iters)
    return Variant(key, f"{words}, trained alike", group, net, list(layers))


def rival_key(attend: Attention) -> str:
    """Return the key of a trained rival's row: the same for the same options, whatever the seed."""
    return f"{attend.name}_{short_hash(attention_config(attend))}_trained"


def rival_words(attend: Attention) -> str:
    """Name a trained rival, with the options that are not those of its YAML file."""
    usual, given = attentions()[attend.name], attention_config(attend)
    other = [f"{key}={value}" for key, value in given.items() if usual.get(key, value) != value]
    return f"{RIVALS[attend.name]} ({', '.join(other)})" if other else RIVALS[attend.name]


def trained_words(attend: CoarseAttention, num_iters: int | None) -> str:
    """Describe coarse attention by its size and form, and by what is unusual."""
    keys = CoarseKeys(
        attend.tokens,
        attend.subset,
        attend.weights,
        None if attend.num_iters == num_iters else attend.num_iters,
        attend.seed,
        attend.grid_width,
    )
    form = "one_pass" if attend.one_pass else "two_sided"
    words = [coarse_duals_label(CoarseRecipe(**keys.identity()), form)]
    words += [f"seed {attend.seed}"] if attend.subset == "random" else []
    words += [f"refine {attend.refine}"] if attend.refine else []
    steps = attend.implicit_steps
    return ", ".join(words + ([] if steps is None else [f"implicit gradient, {steps} steps"]))


def further_maps(
    net: nn.Module, artifact: Artifact, others: list[Artifact]
) -> tuple[list[Variant], dict[str, MapPoint]]:
    """Return rows for other maps of the same teacher, and for their controls, each one once.

    Also returns the point that each such row, and each of `artifact` itself, measures: maps that
    differ only in the seed of their calibration share a point.
    """
    device = next(net.parameters()).device
    rows = []
    points = {"asap": map_point(artifact, control=False)}
    controls = set()
    if has_control(artifact):
        points["control_query"] = map_point(artifact, control=True)
        controls.add((points["control_query"].key, seed_of(artifact)))
    for number, other in enumerate(others):
        for control in (False, True) if has_control(other) else (False,):
            point, seed = map_point(other, control=control), seed_of(other)
            if control and (point.key, seed) in controls:
                continue
            controls.add((point.key, seed))
            make = other.query_features_only if control else other.attention
            attends = {path: make(path).to(device) for path in other.layers}
            key = f"{OTHER_MAP}{number}{'_query' if control else ''}"
            points[key] = point
            kind: RowGroup = "control" if control else group_of(other)
            label = point.label if seed is None else f"{point.label}, seed {seed}"
            rows.append(Variant(key, label, kind, net, other.layers, attends))
    return rows, points


def has_control(artifact: Artifact) -> bool:
    """Return True if there is a map without slices to compare with: if some layer became ASAP."""
    about = artifact.about
    return about.calibration.fitted and not (about.imitates or about.without_asap)


def group_of(artifact: Artifact) -> RowGroup:
    """Return the kind of method of an artifact's row: ASAP, or what layers became instead."""
    if artifact.about.without_asap:
        return "budget"
    if artifact.about.imitates:
        return "imitation"
    return "asap" if artifact.about.calibration.fitted else "coarse"


def seed_of(artifact: Artifact) -> int | None:
    """Return the seed of a calibration; without a fit that of random tokens, or None."""
    made = artifact.about.calibration
    if made.fitted:
        return made.seed
    assert made.coarse is not None
    return made.coarse.seed


def map_point(artifact: Artifact, *, control: bool) -> MapPoint:
    """Return the point of a map or its control, which has no slices and ignores their settings."""
    about = artifact.about
    of_slices = ("slices", "candidates", "query_features", "adaptive", "logits", "coarse", "name")
    unread = of_slices if control else ()
    calibration = to_json(about.calibration, exclude_none=True)
    attentions = {
        path: without_subset(options, control) for path, options in (about.attentions or {}).items()
    }
    name = short_hash(
        [drop_keys(calibration, ("seed", "coarse.seed", *unread)), attentions, control]
    )
    return MapPoint(key=f"{OTHER_MAP}{name}", label=map_label(about, control=control))


def without_subset(options: AttentionConfig, control: bool) -> AttentionConfig:
    """Return an attention without the seed of its subset and, for a control, without the subset."""
    if options["name"] == "coarse":
        return drop_keys(options, ("seed",))
    return drop_keys(options, ("coarse" if control else "coarse.seed",))


def numbers(paths: list[str], layers: Mapping[str, nn.Module]) -> str:
    """Return the layers' numbers, in the order of the blocks."""
    order = list(layers)
    return ", ".join(str(order.index(path)) for path in paths)


def layer_words(paths: list[str], layers: Mapping[str, nn.Module]) -> str:
    return f"layer{'s' if len(paths) > 1 else ''} {numbers(paths, layers)}"
