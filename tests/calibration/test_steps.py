"""The registry of calibration steps: what a new step needs, and what reads it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import asap_exp
from asap_exp.attention import AsapAttention
from asap_exp.calibration import steps
from asap_exp.calibration.steps import (
    STEPS,
    ImitationStep,
    LayerData,
    LayerStep,
    ModelStep,
    StartStep,
    names_of,
    register,
    with_settings,
)
from asap_exp.compiling import artifact_of
from asap_exp.core.composing import conf_dir
from asap_exp.core.errors import UserError
from asap_exp.core.features import FEATURES
from asap_exp.core.records import identity
from asap_exp.core.records.fidelity import FidelityRow
from asap_exp.core.records.identity import CalibrationRecipe
from asap_exp.core.records.words import feature_words
from asap_exp.core.typed import from_json, to_json
from tests.small_model import Classifier, batches, kl, tokens


def test_steps_are_found_by_their_files_and_stand_in_the_order_of_their_scopes() -> None:
    files = {file.stem for file in Path(steps.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base"} == STEPS.keys()
    in_order = (StartStep, LayerStep, ModelStep, ImitationStep)
    assert list(STEPS) == [name for kind in in_order for name in names_of(kind)]
    assert names_of(StartStep) == ["ridge"]
    assert {"kl", "learned_slices"} <= set(names_of(LayerStep))
    assert "end_to_end" in names_of(ModelStep)


def test_every_step_with_settings_has_them_in_the_yaml() -> None:
    file = conf_dir() / "distill" / "calibration" / "ridge.yaml"
    written: Any = OmegaConf.to_container(OmegaConf.load(file))
    for name, step in with_settings().items():
        settings = step.defaults()
        assert written[name] == {f.name: getattr(settings, f.name) for f in fields(settings)}


def test_configurations_of_distill_are_checked_without_torch() -> None:
    light = "import sys, asap_exp.distill.config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0


@pytest.fixture
def halving() -> Iterator[str]:
    """A further step on single layers, without settings: it halves the slices' weights."""
    before = dict(STEPS)

    @register("halving")
    class Halving(LayerStep):
        def fit(self, attend: AsapAttention, scale: Tensor, data: LayerData) -> None:
            assert len(data.fit) > 0 < len(data.held_out)
            assert scale.shape[0] == len(attend.weight)
            with torch.no_grad():
                attend.weight.mul_(0.5)

    yield "halving"
    STEPS.clear()
    STEPS.update(before)


def test_a_further_step_is_taken_by_its_name_and_recorded(halving: str) -> None:
    teacher = Classifier().eval()
    options: dict[str, Any] = {"slices": 3, "candidates": 8, "adaptive": False}
    ridge, halved = (
        asap_exp.compile(teacher, batches(1, 2, 3), steps=taken, **options)
        for taken in (("ridge",), ("ridge", halving))
    )
    for path in ("first", "second"):
        before, after = (artifact_of(model).tensors[f"{path}.weight"] for model in (ridge, halved))
        assert torch.equal(after, before / 2)
    assert kl(teacher, halved, tokens(9)) != kl(teacher, ridge, tokens(9))
    identity = artifact_of(halved).identity["calibration"]
    assert identity["steps"] == ["ridge", "halving"]
    assert identity["name"] == "halving"
    with pytest.raises(UserError, match="choose one of ridge, halving, kl, learned_slices"):
        asap_exp.compile(teacher, batches(1, 2), steps=("ridge", "no_step"))


def test_settings_of_no_step_are_refused() -> None:
    with pytest.raises(TypeError, match="no keyword 'lasso'; the steps with settings are kl, "):
        asap_exp.compile(nn.Linear(1, 1), [], lasso=1)


def recipe(**changes: object) -> dict:
    return {
        "name": "kl", "slices": 2, "query_features": False, "refine": 0, "ridge": 1e-6,
        "samples": 8, "holdout": 4, "batch_size": 4, "seed": 0, **changes,
    }  # fmt: skip


def test_records_hold_the_settings_of_any_step_that_was_taken() -> None:
    given = recipe(steps=["ridge", "new"], new={"updates": 3, "lr": 0.1})
    read = from_json(CalibrationRecipe, given, Path("file"))
    assert read.settings["new"].updates == 3
    assert to_json(read, exclude_none=True) == given
    given = recipe(steps=["ridge", "own"], own={"factor": 0.5, "word": "half", "updates": 0})
    read = from_json(CalibrationRecipe, given, Path("file"))
    assert to_json(read, exclude_none=True) == given


def test_records_hold_any_feature_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "FEATURES", [*FEATURES, "edge_features"])
    given = recipe(query_features=True, adaptive=True, edge_features=True)
    read = from_json(CalibrationRecipe, given, Path("file"))
    assert read.features == ["query_features", "adaptive", "edge_features"]
    assert feature_words(read) == "query, adaptive and edge"
    assert to_json(read, exclude_none=True) == given


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": ["ridge"], "kl": {"updates": 3, "lr": 0.1}},
        {"kl": {"updates": 3, "lr": 0.1}},
        {"steps": ["ridge", "kl"], "kl": {"updates": 0, "lr": 0.1}},
        {"steps": ["ridge", "kl"], "kl": 3},
        {"further_features": ["new"]},
        {"further_features": True},
        {"settings": True},
        {"new": True},
        {"new": False},
        {"new": 1},
        {"steps": ["ridge", "settings"], "settings": {"kl": {"updates": 3, "lr": 0.1}}},
        {"settings": {"kl": {"updates": 3, "lr": 0.1}}},
        {"steps": "kl", "kl": {"updates": 3, "lr": 0.1}},
        {"steps": [["kl"]], "kl": {"updates": 3, "lr": 0.1}},
    ],
)
def test_records_hold_no_other_settings(changes: dict) -> None:
    with pytest.raises(UserError, match="is damaged"):
        from_json(CalibrationRecipe, recipe(**changes), Path("file"))


def test_fidelity_has_a_column_for_any_step() -> None:
    numbers = dict.fromkeys(
        (
            "l1_row_distance", "column_error", "largest_column_error", "teacher_column_error",
            "r_squared", "r_squared_held_out", "condition_number",
        ),
        1.0,
    )  # fmt: skip
    given = {"layer": "first", "head": 0, **numbers, "kl_ridge": 0.2, "kl_new": None}
    read = from_json(FidelityRow, given, Path("file"))
    assert read.kl == {"ridge": 0.2, "new": None}
    assert to_json(read) == given
    for wrong in ({"kl_new": -1.0}, {"kl_new": "0.1"}, {"kl": {"ridge": 0.1}}, {"new": 0.1}):
        with pytest.raises(UserError, match="is damaged"):
            from_json(FidelityRow, {**given, **wrong}, Path("file"))
