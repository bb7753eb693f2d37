"""distill with calibration.form=one_pass: a map of the keys, then its evaluation and report."""

from pathlib import Path

import pytest

import asap_exp
from asap_exp.attention import attention_layers
from asap_exp.calibration.artifact import load_artifact
from asap_exp.core.records.words import map_label
from asap_exp.models import load_net
from asap_exp.report.records import read_record
from tests.conftest import Pipeline
from tests.stages import run_distill, run_evaluate, run_report

FORM = "calibration.form=one_pass"


@pytest.fixture(scope="module")
def folder(results: Path) -> Path:
    return run_distill(results, FORM)


def test_map_says_its_form_and_is_another_than_that_of_two_sides(
    results: Path, folder: Path
) -> None:
    artifact = load_artifact(folder)
    recipe = artifact.identity["calibration"]
    assert recipe["form"] == "one_pass"
    assert all(options["one_pass"] is True for options in artifact.identity["attentions"].values())
    label = map_label(artifact.about, control=False)
    assert ", one pass, ridge, " in label
    two_sided = load_artifact(run_distill(results))
    assert "form" not in two_sided.identity["calibration"]
    assert map_label(two_sided.about, control=False) == label.replace("one pass", "refine 0")
    assert run_distill(results, FORM) == folder


def test_loaded_layers_are_of_one_pass(folder: Path, shared_pipeline: Pipeline) -> None:
    net = asap_exp.load_compiled(load_net(shared_pipeline.teacher), folder)
    assert all(layer.attend.one_pass for layer in attention_layers(net).values())


def test_evaluation_and_report_name_it(results: Path, folder: Path) -> None:
    run_distill(results)
    record = read_record(run_evaluate(results, f"artifact={folder}", "maps=all"))
    rows = {row.key: row for row in record.rows}
    assert rows["asap"].label.startswith("ASAP in one pass, ")
    assert rows["control_zero"].label == "control: ASAP in one pass, all weights zero"
    # Without a dual of the keys it is row softmax, but for rounding: KL is some 1e-6 here.
    assert rows["control_zero"].accuracy == rows["softmax_swapped"].accuracy
    assert rows["control_zero"].kl == pytest.approx(rows["softmax_swapped"].kl, rel=0.01)
    assert rows["asap"].kl < rows["control_zero"].kl
    labels = {point.label for point in record.maps.values()}
    assert sum("one pass" in label for label in labels) == 2  # the map and its control
    assert sum("refine 0" in label for label in labels) == 2
    run_report(results)
    tables = (results / "report" / "tables.md").read_text()
    assert "| one pass |" in tables
