"""Measuring a small network on tensors in memory: no run directory, no configuration."""

from typing import Any

import pytest
import torch

import asap_exp
from asap_exp.attention import SinkhornAttention, attention_layers
from asap_exp.calibration.artifact import Artifact
from asap_exp.calibration.truncation import Truncation
from asap_exp.compiling import artifact_of
from asap_exp.core.config import LatencyConfig
from asap_exp.core.errors import UserError
from asap_exp.core.records.right import labels_hash
from asap_exp.core.records.row import Row
from asap_exp.core.typed import checked
from asap_exp.data.loader import TensorLoader
from asap_exp.evaluate.measure import Measured, measure_map
from asap_exp.evaluate.variants import Variant, variants
from tests.small_model import CLASSES, Classifier, batches, tokens

ONCE = LatencyConfig(batch_size=8, rounds=3)


def labelled(seed: int, samples: int = 40) -> TensorLoader:
    labels = torch.randint(CLASSES, (samples,), generator=torch.Generator().manual_seed(seed))
    return TensorLoader(tokens(seed, samples), labels, batch_size=16)


@pytest.fixture(scope="module")
def net() -> Classifier:
    return Classifier().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def artifact(net: Classifier) -> Artifact:
    compiled = asap_exp.compile(net, batches(1, 2, 3), steps=("ridge",), slices=3)
    return artifact_of(compiled)


@pytest.fixture(scope="module")
def measured(net: Classifier, artifact: Artifact) -> Measured:
    rows = variants(net, artifact, [Truncation(2)])
    return measure_map(net, artifact, rows, labelled(9), latency=ONCE, fidelity_samples=20)


@pytest.fixture(scope="module")
def rows(measured: Measured) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in measured.rows}


@pytest.mark.slow
def test_what_is_right_is_told_by_sample(net: Classifier, measured: Measured) -> None:
    test = labelled(9)
    assert measured.tested is not None
    predictions = net(test.inputs).argmax(-1)
    assert measured.tested.right["teacher"].tolist() == (predictions == test.labels).tolist()
    assert measured.tested.labels_sha256 == labels_hash(test.labels.numpy())
    for row in measured.rows:
        assert measured.tested.right[row["key"]].mean() == pytest.approx(row["accuracy"])


@pytest.mark.slow
def test_every_variant_is_measured(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows)[:2] == ["teacher", "asap"]
    assert {"truncated_2", "control_zero", "control_query", "softmax_swapped"} <= rows.keys()
    for row in rows.values():
        assert checked(Row, row).key == row["key"]
        assert row["layer_ms"]["median"] > 0
        assert row["peak_memory_mib"] > 0
    assert rows["teacher"]["kl"] == pytest.approx(0, abs=1e-9)
    assert rows["teacher"]["agreement"] == 1
    assert 0 < rows["asap"]["kl"] < rows["softmax_swapped"]["kl"]


@pytest.mark.slow
def test_predictions_are_those_of_the_network(
    net: Classifier, rows: dict[str, dict[str, Any]]
) -> None:
    test = labelled(9)
    expected = (net(test.inputs).argmax(dim=-1) == test.labels).float().mean().item()
    assert rows["teacher"]["accuracy"] == pytest.approx(expected)


def test_drift_and_plans_are_of_the_compiled_layers(measured: Measured) -> None:
    assert measured.drift.keys() == {"first", "second"}
    assert all(ratio > 0 for ratio in measured.drift.values())
    assert measured.plans["layer"] == "second"
    assert len(measured.plans["plans"]["asap"]) == 8


def test_any_variants_are_measured_and_nothing_is_changed(
    net: Classifier, artifact: Artifact
) -> None:
    layers = attention_layers(net)
    before = [layer.attend for layer in layers.values()]
    shorter = {"first": SinkhornAttention(num_iters=2)}
    found = measure_map(
        net,
        artifact,
        [
            Variant("teacher", "as trained", "teacher", net, list(layers)),
            Variant("mine", "two updates", "truncated", net, ["first"], shorter),
        ],
        labelled(3),
        latency=ONCE,
        fidelity_samples=8,
        validation=labelled(4),
    ).rows
    assert [row["layers"] for row in found] == [[], ["first"]]
    assert found[1]["l1_row_distance"] > 0
    assert all(row["perplexity"] > 1 < row["val_perplexity"] for row in found)
    assert [layer.attend for layer in layers.values()] == before


def test_tensors_come_in_batches_and_in_their_order() -> None:
    loader = TensorLoader(torch.arange(10), torch.arange(10), batch_size=4)
    assert [inputs.tolist() for inputs, _ in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3
    assert loader.num_samples == 10
    first = loader.first(5, batch_size=3)
    assert [labels.tolist() for _, labels in first] == [[0, 1, 2], [3, 4]]
    assert loader.fingerprint() != first.fingerprint()
    with pytest.raises(UserError, match="10 inputs have 9 labels"):
        TensorLoader(torch.arange(10), torch.arange(9), batch_size=4)
