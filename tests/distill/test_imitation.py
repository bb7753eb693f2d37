"""distill with calibration=hedgehog: linear attention fitted to a softmax teacher's plans."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import asap_exp
from asap_exp.attention import HedgehogAttention, attention_layers, swapped
from asap_exp.calibration.artifact import load_artifact
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.imitation import check_taught
from asap_exp.calibration.steps.hedgehog import Hedgehog
from asap_exp.core.composing import compose
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.words import map_label
from asap_exp.distill.check import check, timed_fit
from asap_exp.distill.config import DistillConfig
from asap_exp.evaluate.evaluate import score
from asap_exp.models import load_net
from asap_exp.report.records import read_record
from tests.conftest import Pipeline
from tests.stages import run_coarse, run_distill, run_evaluate, run_imitation, run_report, run_train


def config(*overrides: str) -> DistillConfig:
    return compose("distill", ["calibration=hedgehog", *overrides], DistillConfig)


@pytest.fixture(scope="module")
def folder(results: Path) -> Path:
    return run_imitation(results)


@pytest.fixture(scope="module")
def record(results: Path, folder: Path) -> Path:
    return run_evaluate(results, f"artifact={folder}")


def test_artifact_holds_the_maps_of_every_layer_of_the_softmax_teacher(
    folder: Path, shared_pipeline: Pipeline
) -> None:
    assert folder.parent.parent.name == shared_pipeline.softmax.path.name
    artifact = load_artifact(folder)
    layers = attention_layers(load_net(shared_pipeline.softmax))
    assert artifact.layers == list(layers)
    assert {name: tuple(x.shape) for name, x in load_file(folder / "asap.safetensors").items()} == {
        f"{path}.{name}": (2, 8, 8) for path in layers for name in ("query_map", "key_map")
    }
    about = artifact.about
    assert about.imitates
    assert (about.num_iters, about.eps) == (None, None)
    assert map_label(about, control=False) == "Hedgehog, 32 samples"
    recipe = artifact.identity["calibration"]
    assert recipe["hedgehog"] == {"updates": 60, "lr": 0.01}
    assert not {"ridge", "kl", "candidates", "coarse"} & recipe.keys()
    for path in layers:
        attend = artifact.attention(path)
        assert isinstance(attend, HedgehogAttention)
        assert not any(parameter.requires_grad for parameter in attend.parameters())


def test_fit_brings_plans_and_predictions_near_the_teachers(folder: Path) -> None:
    artifact = load_artifact(folder)
    kl = artifact.identity["prediction_kl"]["imitations"]
    assert kl["after"] < kl["before"] / 3
    for row in read_json(folder / "fidelity.json"):
        assert row["kl_hedgehog"] < row["kl_start"] / 2
        assert row["r_squared"] is None


def test_loaded_model_predicts_as_the_fitted_one_and_keeps_its_other_weights(
    folder: Path, shared_pipeline: Pipeline
) -> None:
    net, x = load_net(shared_pipeline.softmax), torch.rand(4, 1, 8, 8)
    artifact = load_artifact(folder)
    loaded = asap_exp.load_compiled(net, folder)
    with torch.no_grad():
        teacher = net(x)
        with swapped(net, {path: artifact.attention(path) for path in artifact.layers}):
            expected = net(x)
        torch.testing.assert_close(loaded(x), expected)
        assert (expected - teacher).abs().max() > 1e-6
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    ratios = asap_exp.drift(loaded, x)
    assert set(ratios) == set(artifact.layers)


def test_map_is_refused_by_a_model_of_another_attention(
    folder: Path, shared_pipeline: Pipeline
) -> None:
    with pytest.raises(
        UserError, match="teacher has softmax attention, this model sinkhorn attention"
    ):
        asap_exp.load_compiled(load_net(shared_pipeline.teacher), folder)


def test_one_layer_can_be_chosen(results: Path, folder: Path) -> None:
    made = run_imitation(results, "+layer=last")
    assert made != folder
    (path,) = load_artifact(made).layers
    assert path == load_artifact(folder).layers[-1]


def test_fit_is_the_same_again_and_found(
    results: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "asap.safetensors").read_bytes()
    assert run_imitation(results, "calibration.ridge=0.1") == folder
    assert "Already compiled" in capsys.readouterr().out
    save_file({}, folder / "asap.safetensors")
    assert run_imitation(results) == folder
    assert "It is compiled again" in capsys.readouterr().err
    assert (folder / "asap.safetensors").read_bytes() == before


def test_evaluation_has_the_rows_of_teacher_map_and_what_it_was_before(record: Path) -> None:
    found = read_record(record)
    rows = {row.key: row for row in found.rows}
    assert list(rows) == [
        "teacher",
        "asap",
        "asap_layer_0",
        "asap_layer_1",
        "control_unfitted",
        "control_uniform",
    ]
    assert (rows["teacher"].label, rows["asap"].label) == (
        "softmax teacher",
        "Hedgehog, all layers",
    )
    assert rows["asap"].group == "imitation"
    assert rows["asap"].kl is not None
    assert rows["control_unfitted"].kl is not None
    assert rows["asap"].kl < rows["control_unfitted"].kl / 3
    assert found.softmax_run is None
    assert score(record).value == rows["asap"].accuracy


def test_report_names_both(results: Path, record: Path) -> None:
    run_report(results)
    tables = (results / "report" / "tables.md").read_text()
    (title,) = [
        line for line in tables.splitlines() if line.startswith("## ") and "softmax teacher" in line
    ]
    section = tables.split(title)[1].split("\n## ")[0]
    assert "Hedgehog, 32 samples." in section
    assert "ASAP" not in section.split("<details")[0]


def test_check_estimates_a_fit_and_writes_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("samples=48", "holdout=16", "batch_size=16", "seed=7")
    asked = config(*(f"calibration.{key}" for key in few), "logger=csv", f"paths.results={results}")
    before = sorted(results.rglob("*"))
    fit = timed_fit
    fits: list[tuple[int, int]] = []

    def made_up_seconds(data: CalibrationData, paths: list[str]) -> float:
        """Fit, and say that a sample took 1 ms and an update 10 ms."""
        assert fit(data, paths) > 0
        fits.append((data.fit.num_samples, data.config.hedgehog.updates))
        return 2e-3 * data.fit.num_samples + 1e-2 * data.config.hedgehog.updates

    monkeypatch.setattr("asap_exp.distill.check.timed_fit", made_up_seconds)
    estimate = check(asked).value
    assert sorted(results.rglob("*")) == before
    assert fits == [(8, 1), (16, 1), (16, 4)]
    # The first fit, for 48 + 16 samples where it had 8 + 8, and each update: the updates that are
    # asked for count once, not again for every sample.
    updates = asked.calibration.hedgehog.updates
    assert estimate == pytest.approx((8 * 2e-3 + 1e-2) * 64 / 16 + 1e-2 * updates)


def test_each_calibration_says_which_teacher_it_needs(
    results: Path, shared_pipeline: Pipeline
) -> None:
    sinkhorn, softmax = (
        results / run.path.relative_to(shared_pipeline.results)
        for run in (shared_pipeline.teacher, shared_pipeline.softmax)
    )
    words = r"attention=sinkhorn; only a softmax teacher .*attention=softmax; .*calibration=ridge"
    with pytest.raises(UserError, match=words):
        run_imitation(results, f"teacher={sinkhorn}")
    words = r"attention=softmax; only a Sinkhorn .*attention=sinkhorn; .*calibration=hedgehog"
    with pytest.raises(UserError, match=words):
        run_distill(results, f"teacher={softmax}")
    with pytest.raises(UserError, match=words):
        run_coarse(results, f"teacher={softmax}")


def test_attention_that_no_calibration_is_for_is_refused(tmp_path: Path) -> None:
    run = run_train(tmp_path, attention=("attention=uniform",))
    with pytest.raises(UserError, match="attention=uniform; only a softmax teacher") as error:
        run_imitation(tmp_path, f"teacher={run.path}")
    assert "for this one" not in str(error.value)
    words = "no finished softmax teacher of task digits in .*task=digits attention=softmax"
    with pytest.raises(UserError, match=words):
        run_imitation(tmp_path, "task=digits")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("calibration.slices=2",),
            r"slices=2 needs a map .*hedgehog.* fits another attention",
        ),
        (("calibration.refine=1",), "refine=1 needs a map that is fitted"),
        (("calibration.sequential=true",), "sequential=true needs a map that is fitted"),
        (("calibration.query_features=true",), "query_features=true needs a map that is fitted"),
        (("calibration.coarse.tokens=4",), "coarse.tokens=4 is of duals"),
        (("calibration.form=one_pass",), "form=one_pass is of duals"),
        (("calibration.steps=[ridge,hedgehog]",), "hedgehog is a calibration by itself"),
        (("calibration.hedgehog.updates=0",), r"hedgehog.updates=0 is not allowed"),
        (("budget.accuracy_drop=1",), "hedgehog fits one attention to a softmax teacher"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(
    overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        config(*overrides)


def test_a_sinkhorn_layer_is_no_teacher_of_an_imitation(shared_pipeline: Pipeline) -> None:
    layers = attention_layers(load_net(shared_pipeline.teacher))
    with pytest.raises(UserError, match=r"has sinkhorn attention, .*hedgehog imitates softmax"):
        check_taught(Hedgehog(), layers)
