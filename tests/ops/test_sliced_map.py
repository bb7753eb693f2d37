"""The map as one object, and the registry of its features."""

from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.calibration import config
from asap_exp.ops import (
    CoarseSettings,
    SlicedMap,
    adaptive_features,
    asap_attention,
    choose_subset,
    coarse_duals,
    features,
    logit_features,
    map_attention,
    map_dual,
    map_features,
    predicted_dual,
    query_features,
    sliced_potentials,
)
from asap_exp.ops.call import Call
from asap_exp.ops.features import FEATURES
from asap_exp.ops.subsets import CHOICES, WEIGHTS

HEADS, SLICES, DIM, TOKENS = 2, 3, 4, 7
COARSE = CoarseSettings(3, "farthest", num_iters=5)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_map() -> SlicedMap:
    tensors = {"theta": normal(HEADS, SLICES, DIM), "weight": normal(HEADS, SLICES, seed=1)}
    for seed, feature in enumerate(FEATURES.values(), start=2):
        tensors[feature.weight] = normal(*feature.shape(HEADS, SLICES, DIM), seed=seed)
    relaxation = torch.full((HEADS,), 1.3)
    return SlicedMap.of(tensors | {"relaxation": relaxation, "coarse": COARSE})


def usual_map() -> SlicedMap:
    """Return the map without features that `asap_attention` takes no weight of."""
    usual = ("theta", "weight", "query_weight", "adaptive_weight", "logit_weight", "relaxation")
    return SlicedMap.of({name: getattr(whole_map(), name) for name in usual})


def queries_and_keys() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(2, HEADS, TOKENS, DIM, seed=8), normal(2, HEADS, TOKENS, DIM, seed=9)


def test_fields_that_may_be_left_out_are_known_to_compilers():
    assert list(SlicedMap._field_defaults) == list(SlicedMap._fields[2:])


def test_features_are_found_by_their_files_in_the_order_of_the_fields() -> None:
    files = {file.stem for file in Path(features.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base"} == FEATURES.keys() == set(config.FEATURES)
    weights = [feature.weight for feature in FEATURES.values()]
    assert weights[:3] == ["query_weight", "adaptive_weight", "logit_weight"]
    assert SlicedMap._fields == ("theta", "weight", *weights, "relaxation", "coarse", "one_pass")
    assert set(config.COARSE_CHOICES) == set(CHOICES)
    assert config.COARSE_WEIGHTS == WEIGHTS


def test_operators_take_the_map_as_one_object_or_its_tensors() -> None:
    (q, k), map = queries_and_keys(), usual_map()
    v, options = normal(2, HEADS, TOKENS, 5, seed=10), {"refine": 1, "eps": 0.8}
    tensors: Any = map.present() | options
    assert torch.equal(map_attention(q, k, v, map, **options), asap_attention(q, k, v, **tensors))
    assert torch.equal(map_dual(q, k, map, **options), predicted_dual(q, k, **tensors))


def test_features_for_a_fit_are_those_of_the_public_operators() -> None:
    (q, k), theta = queries_and_keys(), whole_map().theta
    phi = sliced_potentials(q, k, theta)
    found = map_features(q, k, theta, list(FEATURES), phi=phi, coarse=COARSE)
    subset = choose_subset(k, 3, choice="farthest")
    ready = coarse_duals(q, k, subset=subset, num_iters=5).ready
    expected = [
        query_features(q),
        adaptive_features(q, k, theta, phi=phi).flatten(2, 3),
        logit_features(q, k),
        (ready - ready.mean(dim=-1, keepdim=True))[:, :, None],
    ]
    for x, y in zip(found, expected, strict=False):  # further features have no operator
        assert torch.equal(x, y)
    for feature, x in zip(FEATURES.values(), found, strict=True):
        assert x.shape == (2, HEADS, feature.total(SLICES, DIM), TOKENS)


def test_every_feature_is_centred_and_blind_to_padding() -> None:
    (q, k), theta = queries_and_keys(), whole_map().theta
    mask = torch.arange(TOKENS) >= torch.tensor([[TOKENS], [4]])
    bad_q, bad_k = (x.masked_fill(mask[:, None, :, None], float("nan")) for x in (q, k))
    for a, b in ((q, k), (bad_q, bad_k)):
        phi = sliced_potentials(a, b, theta, key_padding_mask=mask)
        found = map_features(
            a, b, theta, list(FEATURES), phi=phi, coarse=COARSE, key_padding_mask=mask
        )
        for x in found:
            assert not x[1, :, :, 4:].any()
            torch.testing.assert_close(x.sum(dim=-1), torch.zeros(x.shape[:3]), rtol=0, atol=1e-4)


def test_settings_and_weight_of_a_coarse_dual_come_together() -> None:
    for missing in ("coarse", "coarse_weight"):
        with pytest.raises(ValueError, match="coarse_weight"):
            whole_map()._replace(**{missing: None}).validate()
    whole_map()._replace(coarse=None, coarse_weight=None).validate()


def test_parts_of_a_map() -> None:
    map = whole_map()
    assert [feature.name for feature, _ in map.features()] == list(FEATURES)
    less = map._replace(adaptive_weight=None)
    assert [x.name for x, _ in less.features()] == [x for x in FEATURES if x != "adaptive"]
    assert "adaptive_weight" not in less.present()
    one = less.heads(slice(1, 2))
    assert one.theta.shape == (1, SLICES, DIM)
    assert one.adaptive_weight is None
    assert torch.equal(one.theta[0], map.theta[1])
    assert SlicedMap.of(map._asdict() | {"other": map.weight}) == map


@pytest.mark.parametrize(
    ("field", "shape", "words"),
    [
        ("weight", (HEADS, SLICES + 1), r"weight must be \[heads, slices\] = \(2, 3\)"),
        ("query_weight", (HEADS, DIM), r"query_weight must be \[heads, head_dim \+ 1\] = \(2, 5\)"),
        ("adaptive_weight", (HEADS, 4, SLICES), r"\[heads, 5, slices\] = \(2, 5, 3\)"),
        ("logit_weight", (HEADS, 4), r"logit_weight must be \[heads, 3\] = \(2, 3\), got \(2, 4\)"),
        (
            "coarse_weight",
            (HEADS, 2),
            r"coarse_weight must be \[heads, 1\] = \(2, 1\), got \(2, 2\)",
        ),
        ("relaxation", (HEADS, 1), r"relaxation must be \[heads\], got shape \(2, 1\)"),
    ],
)
def test_tensors_of_another_shape_are_refused(field: str, shape: tuple, words: str) -> None:
    whole_map().validate()
    wrong = whole_map()._replace(**{field: torch.zeros(shape)})
    with pytest.raises(ValueError, match=words):
        wrong.validate()


@pytest.mark.parametrize(
    ("coarse", "words"),
    [
        (None, "coarse_weight weighs a coarse dual, but the map does not say of which tokens"),
        (COARSE._replace(tokens=0), "coarse.tokens must be at least 1, got 0"),
        (COARSE._replace(choice="all"), "coarse.choice must be one of sequence, grid"),
        (COARSE._replace(weights="all"), "coarse.weights must be one of equal, voronoi"),
    ],
)
def test_wrong_settings_of_the_coarse_dual_are_refused(coarse: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        whole_map()._replace(coarse=coarse).validate()


def test_kernels_refuse_features_that_they_do_not_compute() -> None:
    op = pytest.importorskip("asap_exp.ops.kernels.asap.op")
    one_launch = pytest.importorskip("asap_exp.ops.kernels.asap.one_launch")
    call = Call(8, 8, 4, 4, torch.float32, torch.float32, slices=2)
    assert op.dual_refusal(call) is one_launch.refusal(call) is None
    other = call._replace(other_features=("new_weight",))
    assert op.dual_refusal(other) == "has no kernel for the features of new_weight"
    assert one_launch.refusal(other) == "does not compute the features of new_weight"
    assert op.other_features(usual_map()) == ()
