"""distill with calibration=coarse: nothing is fitted, so no data is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

import asap_exp
from asap_exp.attention import (
    CoarseAttention,
    attention_layers,
    build_attention,
    swapped,
)
from asap_exp.calibration.artifact import load_artifact
from asap_exp.calibration.coarse import check_tokens
from asap_exp.calibration.config import CoarseKeys
from asap_exp.core.composing import compose
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.words import coarse_label, map_label, size_and_form
from asap_exp.distill.__main__ import run as distill
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.without_fit import distill_without_fit
from asap_exp.models import load_net
from asap_exp.ops import CoarseSettings
from tests.conftest import Pipeline
from tests.stages import run_coarse, run_train

RIDGE = ("calibration=ridge", "calibration.slices=0", "calibration.query_features=true")


def config(*overrides: str) -> DistillConfig:
    return compose("distill", list(overrides), DistillConfig)


@pytest.fixture(scope="module")
def folder(results: Path) -> Path:
    return run_coarse(results, "data.root=nowhere")


def test_artifact_holds_options_and_no_tensor(folder: Path, shared_pipeline: Pipeline) -> None:
    artifact = load_artifact(folder)
    assert artifact.tensors == {}
    assert read_json(folder / "fidelity.json") == []
    about = artifact.about
    assert (about.calibration_set, about.column_error) == (None, None)
    assert not about.calibration.fitted
    teacher = attention_layers(load_net(shared_pipeline.teacher))
    for path in artifact.layers:
        attend = artifact.attention(path)
        assert isinstance(attend, CoarseAttention)
        assert (attend.tokens, attend.one_pass) == (2, False)
        assert attend.num_iters == teacher[path].attend.num_iters == 4


def test_label_says_size_form_and_what_is_unusual(results: Path, folder: Path) -> None:
    assert (
        map_label(load_artifact(folder).about, control=False) == "coarse duals, 2 tokens, two-sided"
    )
    settings = {"choice": "grid", "weights": "voronoi", "num_iters": 3, "grid_width": 2}
    given = (f"calibration.coarse.{key}={value}" for key, value in settings.items())
    other = run_coarse(results, *given, "calibration.form=one_pass")
    assert other != folder
    label = coarse_label(load_artifact(other).about.calibration)
    assert label == "coarse duals, 2 tokens, one pass, grid, voronoi weights, T = 3, rows of 2"
    assert size_and_form(label) == (2, "one pass")
    assert size_and_form("ASAP, 2 slices") is None


def test_same_again_is_found_and_another_seed_matters_to_random_tokens_alone(
    results: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_coarse(results, "calibration.seed=3", "calibration.samples=7") == folder
    assert "Already compiled" in capsys.readouterr().out
    random = "calibration.coarse.choice=random"
    seeds = {run_coarse(results, random, f"calibration.seed={seed}") for seed in (0, 1)}
    assert len(seeds - {folder}) == 2


def test_damaged_artifact_is_made_again(
    results: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "asap.json").write_text("{")
    assert run_coarse(results) == folder
    assert "It is compiled again" in capsys.readouterr().err
    load_artifact(folder)


@pytest.mark.parametrize("form", ["two_sided", "one_pass"])
def test_with_all_tokens_predictions_are_the_teachers(
    shared_pipeline: Pipeline, results: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net, x = load_net(shared_pipeline.teacher), torch.rand(4, 1, 8, 8)
    options = ("calibration.coarse.tokens=4", f"calibration.form={form}")
    made = run_coarse(results, *options)
    assert "calibration.coarse.tokens=4 takes all 4 tokens" in capsys.readouterr().err
    artifact = load_artifact(made)
    with torch.no_grad():
        teacher = net(x)
        with swapped(net, {path: artifact.attention(path) for path in artifact.layers}):
            torch.testing.assert_close(net(x), teacher, atol=1e-4, rtol=1e-4)
        loaded = asap_exp.load_compiled(net, made)
        torch.testing.assert_close(loaded(x), teacher, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="nothing was fitted"):
        asap_exp.drift(loaded, x)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("calibration.form=three",),
            "form=three is not allowed; choose one of two_sided, one_pass",
        ),
        (("calibration.refine=1",), r"refine=1 needs a map that is fitted, but .*steps=\[\] fits"),
        (("calibration.slices=2",), r"slices=2 needs a map that is fitted"),
        (("calibration.query_features=true",), r"query_features=true needs a map that is fitted"),
        (
            ("calibration.coarse.tokens=0",),
            r"coarse.tokens=0 is not allowed; it must be at least 1",
        ),
        (("calibration.coarse.tokens=null",), r"steps=\[\] must begin with ridge.*coarse.tokens"),
        (("calibration.coarse.num_iters=0",), r"num_iters=0 is not allowed"),
        (("calibration.coarse.choice=all",), r"choice=all is not allowed; choose one of sequence"),
        (("calibration.coarse.token=2",), r"there is no key token below calibration.coarse"),
        (("budget.accuracy_drop=1",), r"coarse fits nothing, and a budget .*budget.coarse_tokens"),
        (
            (*RIDGE, "budget.coarse_tokens=[4]"),
            r"coarse_tokens=\[4\] has no effect without a budget",
        ),
        (
            (*RIDGE, "calibration.form=one_pass", "calibration.refine=1"),
            r"refine=1 updates the dual of the queries, and with calibration.form=one_pass a map",
        ),
        (
            (*RIDGE, "calibration.form=one_pass", "budget.accuracy_drop=1"),
            r"budget.refine=\[0, 1\] has updates, which a map of .*; set budget.refine=\[0\], or",
        ),
        (
            (*RIDGE, "calibration.coarse.tokens=4", "calibration.query_features=false"),
            r"coarse.tokens=4 needs calibration.query_features=true, got false",
        ),
        ((*RIDGE, "calibration.adaptive=true"), r"adaptive=true has no effect with .*slices=0"),
        ((*RIDGE, "calibration.query_features=false"), r"slices=0 leaves nothing to fit"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(
    overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        config("calibration=coarse", *overrides)


@pytest.mark.parametrize(
    ("key", "value"), [("choice", "farthest"), ("weights", "voronoi"), ("num_iters", 3)]
)
def test_settings_of_tokens_without_their_number_are_refused(key: str, value: object) -> None:
    """They would leave a map without the coarse feature that was meant."""
    given = f"calibration.coarse.{key}={value}"
    with pytest.raises(UserError, match=rf"^{given} has no effect without a size of the subset"):
        config(given)
    config(given, "calibration.coarse.tokens=4", "calibration.query_features=true")
    config(given, "budget.accuracy_drop=1", "budget.coarse_tokens=[4]")


def test_width_of_rows_is_refused_where_no_grid_is_chosen() -> None:
    with pytest.raises(
        UserError, match=r"grid_width=3 is read only with .*choice=grid or staggered, not"
    ):
        config("calibration=coarse", "calibration.coarse.grid_width=3")
    with pytest.raises(
        UserError, match=r"grid_width=3 is read with subset='grid' or 'staggered' alone"
    ):
        build_attention({"name": "coarse", "grid_width": 3})
    with pytest.raises(ValueError, match=r"coarse.grid_width=3 is read with coarse.choice='grid'"):
        CoarseSettings(4, grid_width=3).validate()


def test_a_grid_that_does_not_fit_is_refused(results: Path) -> None:
    grid = ("calibration.coarse.choice=grid", "calibration.coarse.grid_width=3")
    with pytest.raises(UserError, match=r"^calibration\.coarse\.choice='grid' cannot lay out 4"):
        run_coarse(results, *grid)
    with pytest.raises(UserError, match="choice=grid is for images, and this model reads texts"):
        check_tokens(CoarseKeys(tokens=2, choice="grid"), None)


@pytest.mark.slow
def test_the_newest_teacher_is_of_sinkhorn_and_check_refuses_what_the_run_does(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sinkformer's is newer, and a map can be fitted to it, but its updates are others."""
    results = pipeline.results
    other = run_train(results, attention=("attention=sinkformer",))
    check = ("calibration=coarse", "calibration.coarse.tokens=2", "check=true")
    where = f"paths.results={results}"
    distill(config(*check, where))
    assert "Would run: coarse on" in capsys.readouterr().out
    assert pipeline.teacher.path.name in str(run_coarse(results))
    distill(config(*check, where))
    assert "Would run: nothing, it is finished" in capsys.readouterr().out
    for run in (distill, distill_without_fit):
        with pytest.raises(UserError, match="has sinkformer attention, whose updates are not"):
            run(config(*check, where, f"teacher={other.path}"))


def test_settings_are_part_of_what_names_a_map_only_where_they_are_read() -> None:
    plain = config("calibration=ridge").calibration.identity()
    assert not {"coarse", "form"} & plain.keys()
    used: dict[str, Any] = config(*RIDGE, "calibration.coarse.tokens=4").calibration.identity()
    assert used["coarse"] == {
        "tokens": 4, "choice": "sequence", "weights": "equal", "num_iters": None
    }  # fmt: skip
    assert "candidates" not in used
    random = config(
        *RIDGE, "calibration.coarse={tokens: 4, choice: random}", "calibration.seed=5"
    ).calibration
    assert random.identity()["coarse"]["seed"] == 5
