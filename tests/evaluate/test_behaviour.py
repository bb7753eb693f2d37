"""What the plans of whole models do, measured in a run and put into its record."""

import math
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.attention import UniformAttention, attention_layers, swapped
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.sealed import SEAL
from asap_exp.data import ImageDataModule
from asap_exp.evaluate import behaviour
from asap_exp.evaluate.behaviour import SEVERITIES, describe, measure_behaviour, whole_models
from asap_exp.evaluate.corruption import CORRUPTIONS
from asap_exp.evaluate.plan_statistics import effective_rank, largest_column_sum
from asap_exp.evaluate.states import blocks_of, recorded_states
from asap_exp.evaluate.variants import Variant
from asap_exp.models import load_net
from tests.conftest import Pipeline
from tests.data.sentences import text_root
from tests.fake_runs import train_config
from tests.records import typed
from tests.several import agreed
from tests.small_model import Classifier
from tests.stages import run_distill, run_evaluate, run_report, run_text

pytestmark = pytest.mark.slow
MEASURED = "behaviour=true"
RIVALS = [
    ("attention=lotformer",),
    ("attention=hedgehog",),
    ("attention=coarse", "attention.tokens=4", "attention.one_pass=true"),
]
"""Models of the same recipe whose plans can be compared with the columns of their rows."""


@pytest.fixture(scope="module")
def record(results: Path) -> dict[str, Any]:
    return read_json(run_evaluate(results, MEASURED))


def by_key(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in record["behaviour"]["rows"]}


def test_whole_models_are_measured_by_layer(record: dict[str, Any]) -> None:
    rows = by_key(record)
    assert list(rows) == ["teacher", "asap", "softmax_trained"]
    assert record["behaviour"]["samples"] == record["fidelity_samples"] == 16
    for row in rows.values():
        assert [each["layer"] for each in row["layers"]] == ["blocks.0.attn", "blocks.1.attn"]
        assert len(row["ranks"]) == 3
        for each in row["layers"]:
            assert 1 <= each["largest_column"] <= each["largest_column_of_all"] <= 4
            assert each["entropy"] == pytest.approx(each["relative_entropy"] * math.log(4))
    assert rows["asap"]["ranks"][0] == pytest.approx(rows["teacher"]["ranks"][0])
    assert rows["asap"]["layers"] != rows["teacher"]["layers"]


def test_teachers_column_error_is_that_of_its_row(record: dict[str, Any]) -> None:
    """Measured in another way: the teacher's own activations are those of its model."""
    rows = {row["key"]: row for row in record["rows"]}
    for key in ("teacher", "softmax_trained"):
        layers = by_key(record)[key]["layers"]
        for name, own in (("column_error", "column_error"), ("entropy", "relative_entropy")):
            mean = sum(layer[own] for layer in layers) / len(layers)
            assert mean == pytest.approx(rows[key][name], rel=1e-4, abs=1e-6)


def test_corrupted_accuracy_is_that_of_an_evaluation_on_these_images(
    record: dict[str, Any], results: Path
) -> None:
    for row in by_key(record).values():
        found = [(each["name"], each["severity"]) for each in row["corrupted"]]
        assert found == [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    noisy = read_json(run_evaluate(results, "corruption.name=noise", "corruption.severity=5"))
    accuracy = {row["key"]: row["accuracy"] for row in noisy["rows"]}
    for key, row in by_key(record).items():
        (mine,) = (x for x in row["corrupted"] if (x["name"], x["severity"]) == ("noise", 5))
        assert mine["accuracy"] == pytest.approx(accuracy[key])


def test_describing_is_the_plain_formula_on_the_running_model(pipeline: Pipeline) -> None:
    """With uniform attention in both layers, batches of 5 and parts of any size."""
    net = load_net(pipeline.teacher, torch.device("cpu"))
    test = ImageDataModule(train_config().data, batch_size=5, seed=0).test_dataloader(13)
    uniform = {path: UniformAttention() for path in attention_layers(net)}
    row = Variant("uniform", "uniform", "asap", net, list(uniform), uniform)
    found = describe(row, test, "32-true")
    (images, _), *_ = test.first(13, 13)
    with swapped(net, uniform), torch.no_grad(), recorded_states(net) as states:
        net(images)
    assert found["ranks"] == pytest.approx([effective_rank(x).mean().item() for x in states])
    for layer in found["layers"]:
        assert layer["largest_column"] == pytest.approx(1)
        assert layer["relative_entropy"] == pytest.approx(1)
    assert attention_layers(net)["blocks.0.attn"].attend is not uniform["blocks.0.attn"]


def test_parts_change_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    net = load_net(pipeline.softmax, torch.device("cpu"))
    test = ImageDataModule(train_config().data, batch_size=32, seed=0).test_dataloader(20)
    row = Variant("teacher", "softmax", "teacher", net, list(attention_layers(net)))
    whole = measure_behaviour([row], test, precision="32-true", samples=20)
    monkeypatch.setattr(behaviour, "PART", 3)
    parts = measure_behaviour([row], test, precision="32-true", samples=20)
    assert parts["rows"][0]["ranks"] == pytest.approx(whole["rows"][0]["ranks"])
    for one, two in zip(whole["rows"][0]["layers"], parts["rows"][0]["layers"], strict=True):
        assert {**one, "layer": 0} == pytest.approx({**two, "layer": 0})


def test_a_plan_that_is_not_finite_is_told(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = load_net(pipeline.softmax, torch.device("cpu"))
    test = ImageDataModule(train_config().data, batch_size=32, seed=0).test_dataloader(4)
    row = Variant("teacher", "softmax", "teacher", net, list(attention_layers(net)))
    monkeypatch.setattr(
        behaviour, "largest_column_sum", lambda plan, mask: largest_column_sum(0 * plan, mask)
    )
    with pytest.raises(UserError, match="softmax has a plan without mass"):
        describe(row, test, "32-true")


def test_maps_of_some_layers_and_controls_are_no_whole_models() -> None:
    net = Classifier()
    paths = list(attention_layers(net))
    every = {path: UniformAttention() for path in paths}
    first = {"first": every["first"]}
    rows = [
        Variant("teacher", "", "teacher", net, paths),
        Variant("asap", "", "asap", net, paths, every),
        Variant("asap_layer_0", "", "asap", net, ["first"], first),
        Variant("control_uniform", "", "control", net, paths, every),
        Variant("map_0", "", "coarse", net, paths, every),
    ]
    assert [row.key for row in whole_models(rows)] == ["teacher", "asap", "map_0"]


def test_a_layer_without_a_block_is_refused() -> None:
    with pytest.raises(UserError, match="the layers are at first, second"):
        blocks_of(Classifier())


def test_corrupted_images_are_not_corrupted_again(results: Path) -> None:
    with pytest.raises(UserError, match=r"corruption\.name=blur corrupts all"):
        run_evaluate(results, MEASURED, "corruption.name=blur")


def test_without_it_the_record_is_as_before(pipeline: Pipeline) -> None:
    assert "behaviour" not in read_json(pipeline.record)
    assert run_evaluate(pipeline.results, "behaviour=false") == pipeline.record
    assert run_evaluate(pipeline.results, MEASURED) != pipeline.record


def test_record_round_trip_and_what_contradicts_it(record: dict[str, Any]) -> None:
    found = typed(record).behaviour
    assert found is not None
    assert [row.key for row in found.rows] == list(by_key(record))
    without = {key: value for key, value in record.items() if key not in ("behaviour", SEAL)}
    assert typed(without).behaviour is None

    def refused(match: str, change: Any) -> None:
        changed = deepcopy(record)
        change(changed["behaviour"])
        with pytest.raises(UserError, match=match):
            typed(changed)

    refused("is not about rows", lambda b: b["rows"][0].update(key="other"))
    refused("is not about rows", lambda b: b["rows"].reverse())
    refused("more than test.rows=48", lambda b: b.update(samples=49))
    refused("not about the 2 layers", lambda b: b["rows"][1]["layers"].pop())
    refused("must have 3 ranks", lambda b: b["rows"][1]["ranks"].pop())
    refused("same corrupted images", lambda b: b["rows"][1]["corrupted"].pop())


def test_report_has_the_figure_and_the_table(record: dict[str, Any], results: Path) -> None:
    page = run_report(results)
    (figure,) = (page.parent / "figures").glob("*-behaviour.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    tables = (page.parent / "tables.md").read_text()
    teacher = by_key(record)["teacher"]
    first, last = teacher["ranks"][0], teacher["ranks"][-1]
    assert f"| {last:.1f} ({first:.1f}) |" in tables
    text = page.read_text()
    assert "<summary>What the plans do</summary>" in text
    assert "blur 5: drop" in text
    assert 'class="behaviour"' in text


def test_two_devices_measure_the_same(pipeline: Pipeline) -> None:
    given = ("max_test_rows=19", "fidelity_samples=17", "batch_size=16", MEASURED)
    alone = run_evaluate(pipeline.results, *given)
    one = read_json(alone)["behaviour"]
    shutil.rmtree(alone.parent)
    both = agreed(lambda: run_evaluate(pipeline.results, *given, "devices=2", "accelerator=cpu"))
    two = read_json(both)["behaviour"]
    assert two["samples"] == one["samples"] == 17
    for mine, its in zip(one["rows"], two["rows"], strict=True):
        assert its["corrupted"] == mine["corrupted"]
        assert its["ranks"] == pytest.approx(mine["ranks"], rel=1e-5)
        for a, b in zip(mine["layers"], its["layers"], strict=True):
            assert {**b, "layer": 0} == pytest.approx({**a, "layer": 0}, rel=1e-5, abs=1e-6)


def test_texts_have_no_corruption_and_count_valid_tokens(tmp_path: Path) -> None:
    root = text_root(tmp_path / "data", "agnews")
    run_text(tmp_path / "results", root, "task=agnews")
    for attention in RIVALS:
        run_text(tmp_path / "results", root, "task=agnews", attention=attention)
    run_distill(tmp_path / "results")
    found = run_evaluate(tmp_path / "results", "max_test_rows=null", "fidelity_samples=8", MEASURED)
    record = read_json(found)
    rows = {row["key"]: row for row in record["rows"]}
    trained = [key for key in by_key(record) if key.endswith("_trained")]
    assert len(trained) == len(RIVALS)
    for key, row in by_key(record).items():
        assert row["corrupted"] == []
        if key == "asap":
            continue  # on other activations
        for name, own in (("column_error", "column_error"), ("entropy", "relative_entropy")):
            mean = sum(layer[own] for layer in row["layers"]) / len(row["layers"])
            assert mean == pytest.approx(rows[key][name], rel=1e-4, abs=1e-6), key
    page = run_report(tmp_path / "results")
    assert list((page.parent / "figures").glob("*-behaviour.png"))
