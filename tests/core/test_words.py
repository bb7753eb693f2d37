"""Settings of maps: in columns, in the labels of rows, and read back from labels."""

import pytest

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.words import (
    MapSettings,
    layer_words,
    map_label,
    map_settings,
    other_label,
    settings_of_label,
)
from tests.records import PUBLISHED, choosing, published, typed, with_budget


def test_published_labels_give_the_settings_that_they_were_made_from() -> None:
    labels = {
        point["label"]
        for file in PUBLISHED.glob("*.json")
        for point in published(file.stem).get("maps", {}).values()
    }
    assert len(labels) > 50
    for label in labels:
        found = settings_of_label(label)
        assert found is not None, label
        assert found.label == label


@pytest.mark.parametrize(
    "settings",
    [
        MapSettings("8 of 128", "query, adaptive and logit", "1 relaxed", "ridge + kl", "32"),
        MapSettings("4", "", "0", "ridge, sequential", "32"),
        MapSettings("", "query", "2", "ridge", "1024"),
        MapSettings("4", "query", "one pass", "ridge + kl, sequential", "32"),
        MapSettings("", "query", "one pass", "ridge", "32"),
        MapSettings("0", "query and coarse (16 tokens; grid)", "0", "ridge", "32"),
    ],
)
def test_settings_are_read_back_from_their_label(settings: MapSettings) -> None:
    assert settings_of_label(settings.label) == settings


@pytest.mark.parametrize("label", ["Sinkhorn, T' = 3", "ASAP, all layers", "ASAP, by layer x; y"])
def test_label_of_another_method_has_no_settings(label: str) -> None:
    assert settings_of_label(label) is None


def record() -> EvaluationRecord:
    return typed(published("imdb"))


def test_a_record_gives_the_settings_of_its_map_and_of_its_control() -> None:
    about = record().artifact
    assert map_settings(about) == MapSettings(
        slices="8 of 128",
        features="query and adaptive",
        refine="0",
        calibration="ridge + learned slices + end to end",
        samples="8192",
    )
    control = map_settings(about, control=True)
    assert (control.slices, control.features) == ("", "query")
    assert map_label(about, control=True) == control.label


def test_layers_within_a_budget_are_named_one_by_one() -> None:
    about = typed(with_budget(published("imdb"))).artifact
    assert layer_words(about) == "by layer " + "; ".join(["ASAP"] * len(about.layers))
    assert map_label(about, control=False) == f"ASAP, {layer_words(about)}"
    assert map_label(about, control=True).endswith(", without their slices")


@pytest.mark.parametrize(
    ("became", "words"),
    [
        (("softmax",), "softmax by budget"),
        (("Sinkhorn, T' = 1",), "Sinkhorn, T' = 1 by budget"),
        (("softmax", "Sinkhorn, T' = 1"), "by layer softmax; Sinkhorn, T' = 1"),
    ],
)
def test_budget_that_chose_no_asap_is_named_by_what_it_chose(
    became: tuple[str, ...], words: str
) -> None:
    about = typed(choosing(published("imdb"), *became)).artifact
    label = map_label(about, control=False)
    assert label.startswith(words)
    assert label == other_label(about)
    assert "ASAP" not in label


def test_budget_that_chose_asap_for_one_layer_is_called_asap() -> None:
    about = typed(choosing(published("imdb"), "ASAP, 8 slices, refine 0", "softmax")).artifact
    assert other_label(about) is None
    assert map_label(about, control=False).startswith("ASAP, by layer ASAP, 8 slices, refine 0; ")
