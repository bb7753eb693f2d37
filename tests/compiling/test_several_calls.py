"""Several calls of compile, each for some layers: nothing of them is lost."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import asap_exp
from asap_exp.attention import SinkhornAttention, attention_layers
from asap_exp.compiling import artifact_of
from asap_exp.core.errors import UserError
from tests.small_model import Classifier, batches, compile_small, loader, tokens


def compiled_at(path: str, model: nn.Module, data: Any = None, **options: Any) -> nn.Module:
    options = {"layers": [path], "steps": ("ridge",), **options}
    return compile_small(model, data or loader(), **options)


@pytest.mark.parametrize("paths", [["first", "second"], ["second", "first"]])
def test_calls_with_the_same_batches_and_options_make_one_map(
    teacher: Classifier, tmp_path: Path, paths: list[str]
) -> None:
    first = compiled_at(paths[0], teacher)
    both, x = compiled_at(paths[1], first), tokens(9)
    assert artifact_of(both).layers == ["first", "second"]
    assert artifact_of(first).layers == paths[:1], "the first model stays"
    asap_exp.save_compiled(both, tmp_path / "both")
    loaded = asap_exp.load_compiled(teacher, tmp_path / "both")
    assert torch.equal(loaded(x), both(x))
    drift = asap_exp.drift(both, x)
    assert drift == asap_exp.drift(loaded, x)
    assert drift.keys() == {"first", "second"}
    assert (
        artifact_of(both).identity["teacher_sha256"]
        == artifact_of(first).identity["teacher_sha256"]
    )
    with pytest.raises(UserError, match="another teacher"):
        asap_exp.load_compiled(first, tmp_path / "both")


def test_coarse_layers_of_two_calls_make_one_folder(teacher: Classifier, tmp_path: Path) -> None:
    both: nn.Module = teacher
    for path in ("first", "second"):
        options: dict[str, Any] = {"method": "coarse", "tokens": 4, "layers": [path]}
        both = asap_exp.compile(both, progress=False, **options)
    asap_exp.save_compiled(both, tmp_path)
    assert torch.equal(asap_exp.load_compiled(teacher, tmp_path)(tokens(9)), both(tokens(9)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": batches(6, 7, 8)}, "samples .*their batches"),
        ({"ridge": 1e-3}, r"ridge \(1e-06, 0\.001\)"),
        ({"slices": 2, "refine": 1}, r"slices \(3, 2\)"),
    ],
)
def test_calls_that_differ_are_not_saved_as_one(
    teacher: Classifier, tmp_path: Path, options: dict, words: str
) -> None:
    first = compiled_at("first", teacher)
    both, x = compiled_at("second", first, **options), tokens(9)
    with pytest.raises(UserError, match=f"^first and second were .* differ in .*{words}") as found:
        asap_exp.save_compiled(both, tmp_path / "both")
    assert str(found.value).endswith("asap_exp.load_compiled(model, torch.load(file))")
    assert not (tmp_path / "both").exists()
    assert torch.equal(asap_exp.load_compiled(teacher, both.state_dict())(x), both(x))
    drift = asap_exp.drift(both, x)
    assert drift.keys() == {"first", "second"}
    assert drift["first"] == asap_exp.drift(first, x)["first"]


def test_layers_trained_between_two_calls_are_not_saved(
    teacher: Classifier, tmp_path: Path
) -> None:
    first = compiled_at("first", teacher)
    with torch.no_grad():
        first.first.proj.bias.add_(1)
    with pytest.raises(UserError, match="the weights of first, trained between them"):
        asap_exp.save_compiled(compiled_at("second", first), tmp_path)


def test_a_layer_that_is_compiled_again_is_that_of_the_last_call(
    teacher: Classifier, tmp_path: Path
) -> None:
    model = compile_small(teacher, loader(), steps=("ridge",), slices=2)
    model.second.attend = SinkhornAttention(num_iters=8)
    again = compiled_at("second", model, slices=2)
    asap_exp.save_compiled(again, tmp_path)
    assert torch.equal(asap_exp.load_compiled(teacher, tmp_path)(tokens(9)), again(tokens(9)))


def test_folder_loaded_into_a_compiled_model_keeps_both(
    teacher: Classifier, tmp_path: Path
) -> None:
    first, second = compiled_at("first", teacher), compiled_at("second", teacher)
    for model, name in ((first, "first"), (second, "second")):
        asap_exp.save_compiled(model, tmp_path / name)
    half = copy.deepcopy(teacher)
    half.second.attend = SinkhornAttention(num_iters=8)
    loaded = asap_exp.load_compiled(half, tmp_path / "first")
    assert asap_exp.drift(loaded, tokens(9)).keys() == {"first"}
    asap_exp.save_compiled(compiled_at("second", loaded), tmp_path / "both")
    assert asap_exp.load_compiled(teacher, tmp_path / "both").asap_artifact.layers == [
        "first",
        "second",
    ]


def test_a_model_from_a_state_dict_that_is_compiled_further(
    teacher: Classifier, tmp_path: Path
) -> None:
    first = asap_exp.load_compiled(teacher, compiled_at("first", teacher).state_dict())
    both = compiled_at("second", first)
    with pytest.raises(UserError, match="in several calls, of which no calibration is known"):
        asap_exp.save_compiled(both, tmp_path)
    with pytest.raises(UserError, match="no calibration to compare with of the maps at first"):
        asap_exp.drift(both, tokens(9))


def test_part_of_a_model_that_was_compiled_by_itself(teacher: Classifier, tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Identity(), compiled_at("first", teacher))
    both, x = compiled_at("1.second", whole), tokens(9)
    assert asap_exp.drift(both, x).keys() == {"1.first", "1.second"}
    with pytest.raises(UserError, match=r"1\.first and 1\.second were compiled in several calls"):
        asap_exp.save_compiled(both, tmp_path)


def test_other_updates_in_a_layer_that_is_not_compiled_are_not_lost(
    teacher: Classifier, tmp_path: Path
) -> None:
    model = compiled_at("first", teacher)
    asap_exp.save_compiled(model, tmp_path / "as_it_was")
    model.second.attend = SinkhornAttention(num_iters=3)
    with pytest.raises(UserError, match=r"at second, .*holds sinkhorn attention \(num_iters=3"):
        asap_exp.save_compiled(model, tmp_path / "map")
    assert [x.attend.name for x in attention_layers(model).values()] == ["asap", "sinkhorn"]
