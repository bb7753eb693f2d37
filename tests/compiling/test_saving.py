"""Compiled maps in a folder and in a state_dict, and the models into which they load."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from torch import nn

import asap_exp
from asap_exp.attention import (
    AsapAttention,
    MultiHeadAttention,
    SinkhornAttention,
    attention_layers,
)
from asap_exp.calibration.artifact import Artifact
from asap_exp.compiling import artifact_of
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.sealed import SEAL, write_sealed
from asap_exp.models import load_net
from tests.conftest import Pipeline
from tests.small_model import DIM, HEADS, Classifier, compile_small, loader, tokens


@pytest.mark.slow
def test_saved_and_loaded_model_is_the_same(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    asap_exp.save_compiled(compiled, tmp_path / "map")
    assert {f.name for f in (tmp_path / "map").iterdir()} == {"asap.json", "asap.safetensors"}
    loaded = asap_exp.load_compiled(teacher, tmp_path / "map")
    x = tokens(9)
    assert torch.equal(loaded(x), compiled(x))
    assert asap_exp.drift(loaded, x) == asap_exp.drift(compiled, x)
    asap_exp.save_compiled(loaded, tmp_path / "again")
    first, again = (read_json(tmp_path / name / "asap.json") for name in ("map", "again"))
    assert first == again


def test_map_belongs_to_the_weights_of_its_layers_alone(
    compiled: nn.Module, tmp_path: Path
) -> None:
    asap_exp.save_compiled(compiled, tmp_path)
    other = Classifier().eval()
    other.head = nn.Linear(other.head.in_features, 11)
    loaded = asap_exp.load_compiled(other, tmp_path)
    assert loaded(tokens(9)).shape[1] == 11
    for path, layer in attention_layers(loaded).items():
        assert torch.equal(layer.attend.theta, compiled.get_submodule(path).attend.theta)
    with torch.no_grad():
        other.second.proj.bias[0] += 1e-6
    with pytest.raises(UserError, match=r"teacher:\s+the weights of first, second are.*\nLoad"):
        asap_exp.load_compiled(other, tmp_path)
    longer = Classifier()
    longer.second.attend = SinkhornAttention(num_iters=9)
    with pytest.raises(UserError, match=r"teacher:\s+second: num_iters=8 in the map, 9 in"):
        asap_exp.load_compiled(longer, tmp_path)


def test_layers_that_are_not_compiled_may_change(teacher: Classifier, tmp_path: Path) -> None:
    first = compile_small(teacher, loader(), layers=["first"], steps=("ridge",))
    asap_exp.save_compiled(first, tmp_path)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.second.qkv.weight.mul_(2)
    loaded = asap_exp.load_compiled(other, tmp_path)
    assert {n: a.attend.name for n, a in attention_layers(loaded).items()} == {
        "first": "asap",
        "second": "sinkhorn",
    }


def test_older_map_is_bound_to_all_weights(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    """Before, the hash of the whole teacher was the only one."""
    artifact = artifact_of(compiled)
    older = {k: v for k, v in artifact.identity.items() if k != "layers_sha256"}
    model = copy.deepcopy(compiled)
    object.__setattr__(model, "asap_artifact", Artifact(older, artifact.tensors))
    asap_exp.save_compiled(model, tmp_path)
    loaded = asap_exp.load_compiled(teacher, tmp_path)
    assert torch.equal(loaded(tokens(9)), compiled(tokens(9)))
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.head.bias.add_(1)
    with pytest.raises(
        UserError, match=r"the weights of the whole model(.|\n)*their layers' weights alone"
    ):
        asap_exp.load_compiled(other, tmp_path)


def test_map_of_the_stage_loads_into_its_teacher(shared_pipeline: Pipeline) -> None:
    net = load_net(shared_pipeline.teacher)
    compiled = asap_exp.load_compiled(net, shared_pipeline.artifact)
    assert all(isinstance(a.attend, AsapAttention) for a in attention_layers(compiled).values())
    images = torch.rand(4, 1, 8, 8)
    assert asap_exp.drift(compiled, images).keys() == {"blocks.0.attn", "blocks.1.attn"}
    with torch.no_grad():
        net.head.bias.add_(1)
    asap_exp.load_compiled(net, shared_pipeline.artifact)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"refine": 1, "relaxed": True, "logits": True}])
def test_state_dict_restores_a_compiled_model_without_its_folder(options: dict) -> None:
    compiled = compile_small(Classifier().eval(), loader(), **options)
    with torch.no_grad():
        compiled.head.weight.mul_(2)  # whatever is trained on
    state = compiled.state_dict()
    other = Classifier()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(state)
    restored = asap_exp.load_compiled(other, state)
    x = tokens(9)
    assert torch.equal(restored(x), compiled(x))
    for path, layer in attention_layers(restored).items():
        made = compiled.get_submodule(path).attend
        assert (layer.attend.refine, layer.attend.eps) == (made.refine, made.eps)
    assert not any(parameter.requires_grad for parameter in restored.parameters())
    assert all(isinstance(a.attend, SinkhornAttention) for a in attention_layers(other).values())
    # It can then take other weights of the same kind.
    restored.load_state_dict(state)
    with pytest.raises(UserError, match="by load_compiled from a folder"):
        asap_exp.drift(restored, x)


def test_state_dict_says_how_often_a_plan_is_refined(compiled: nn.Module) -> None:
    """In a dtype of its own, since weights may be halved."""
    attend = copy.deepcopy(compiled).half().first.attend
    attend.refine, attend.eps = 3, 0.1
    other = copy.deepcopy(compiled).first.attend
    other.load_state_dict(attend.state_dict())
    assert (other.refine, other.eps) == (3, 0.1)


def test_state_dict_of_another_model_is_refused(compiled: nn.Module) -> None:
    state = compiled.state_dict()
    with pytest.raises(UserError, match=r"holds no compiled layer of this Classif.*first, sec"):
        asap_exp.load_compiled(Classifier(), Classifier().state_dict())
    with pytest.raises(UserError, match="of another model"):
        asap_exp.load_compiled(Classifier(), {k: v for k, v in state.items() if "head" not in k})
    older = {k: v for k, v in state.items() if "_extra_state" not in k}
    with pytest.raises(UserError, match="saved by an older version"):
        asap_exp.load_compiled(Classifier(), older)


def test_only_compiled_models_are_saved(teacher: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this Classifier was not made by asap_exp\.compile"):
        asap_exp.save_compiled(teacher, tmp_path)


def test_drift_and_load_take_no_other_precision_or_backend(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    asap_exp.save_compiled(compiled, tmp_path)
    with pytest.raises(UserError, match=r"precision=half .* 32-true, bf16-mixed, 16-mixed"):
        asap_exp.drift(compiled, tokens(9), precision="half")
    with pytest.raises(UserError, match=r"backend=cuda .* auto, reference, triton"):
        asap_exp.load_compiled(teacher, tmp_path, backend="cuda")


def test_compiled_model_is_copied_and_pickled(compiled: nn.Module) -> None:
    for model in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert torch.equal(model(tokens(9)), compiled(tokens(9)))
        assert asap_exp.drift(model, tokens(9)) == asap_exp.drift(compiled, tokens(9))


def test_training_mode_of_a_frozen_model_says_so(compiled: nn.Module) -> None:
    model = copy.deepcopy(compiled)
    with pytest.warns(UserWarning, match=r"is frozen .* model\.requires_grad_\(\)"):
        model.train()
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(tokens(9)).sum().backward()
    model.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train().eval().train()
    model(tokens(9)).sum().backward()
    assert model.first.attend.weight.grad.any()
    assert model.head.weight.grad.any()


class Wrapped(nn.Sequential):
    """As torch.compile wraps a model, with attributes that are those of the model."""

    def __getattr__(self, name: str) -> object:  # type: ignore[override]
        return getattr(self[0], name) if name == "asap_artifact" else super().__getattr__(name)


def test_the_map_is_saved_as_it_is_now(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    model, x = copy.deepcopy(compiled), tokens(9)
    for layer in attention_layers(model).values():
        layer.attend.requires_grad_()
    optimiser = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model(x).square().sum().backward()
    optimiser.step()
    assert not torch.equal(model(x), compiled(x))
    for saved, folder in ((model, tmp_path / "map"), (Wrapped(model), tmp_path / "wrapped")):
        asap_exp.save_compiled(saved, folder)
        loaded = asap_exp.load_compiled(teacher, folder)
        assert torch.equal(loaded(x), model(x))
        assert asap_exp.drift(loaded, x) == asap_exp.drift(model, x)
    asap_exp.save_compiled(compiled, tmp_path / "before")
    before, after = (read_json(tmp_path / n / "asap.json") for n in ("before", "map"))
    assert {key for key in before if before[key] != after[key]} == {"tensors_sha256", SEAL}


def change_weight(model: Classifier) -> None:
    with torch.no_grad():
        model.second.proj.bias[0] += 1e-6


def change_kind(model: Classifier) -> None:
    model.first.attend = SinkhornAttention(num_iters=8)


def change_option(model: Classifier) -> None:
    model.first.attend.refine = 2  # type: ignore[assignment]


def change_shape(model: Classifier) -> None:
    attend = model.first.attend
    model.first.attend = AsapAttention(attend.theta[:, :1], attend.weight[:, :1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_weight, r"weights of its attention layers \(first, second\) are not those"),
        (nn.Module.double, r"weights of its attention layers .* trained or cast since"),
        (change_kind, r"^at first the model holds sinkhorn .*compiled to asap attention"),
        (change_option, r"^at first the model holds asap attention \(refine=2.*to .*refine=0"),
        (change_shape, r"^at first the model holds asap .*theta=\[2, 1, 8\].*theta=\[2, 3, 8\]"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_what_a_folder_would_not_bring_back_is_not_saved(
    compiled: nn.Module, tmp_path: Path, change: Callable, words: str, older: bool
) -> None:
    model = copy.deepcopy(compiled)
    if older:
        without = {k: v for k, v in artifact_of(model).identity.items() if k != "layers_sha256"}
        model.asap_artifact = Artifact(without, artifact_of(model).tensors)  # type: ignore[assignment]
        words = words.replace(r"weights of its attention layers \(first, second\)", "its weights")
        words = words.replace("weights of its attention layers", "its weights")
    change(model)
    with pytest.raises(UserError, match=words) as refused:
        asap_exp.save_compiled(model, tmp_path / "map")
    assert str(refused.value).endswith("asap_exp.load_compiled(model, torch.load(file))")
    assert not (tmp_path / "map").exists()


def test_state_dict_loads_into_a_model_without_memory(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    model, state, x = copy.deepcopy(teacher).to("meta"), compiled.state_dict(), tokens(9)
    tied = copy.deepcopy(model)
    tied.second.qkv.weight = tied.first.qkv.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(asap_exp.load_compiled(model, state)(x), compiled(x))
        loaded = asap_exp.load_compiled(tied, state)
        partly = copy.deepcopy(teacher)
        partly.head.to("meta")
        assert torch.equal(asap_exp.load_compiled(partly, state)(x), compiled(x))
    assert loaded.first.qkv.weight is loaded.second.qkv.weight
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        loaded.head.weight.zero_()
    assert compiled.head.weight.any(), "the state_dict's own tensors stay"


def test_weights_that_no_state_dict_holds_must_be_there(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    model, state = copy.deepcopy(teacher).to("meta"), compiled.state_dict()
    with pytest.raises(UserError, match=r"of another model(.|\n)*head\.bias"):
        asap_exp.load_compiled(model, {k: x for k, x in state.items() if k != "head.bias"})
    asap_exp.save_compiled(compiled, tmp_path)
    with pytest.raises(UserError, match="on the meta device; give it memory"):
        asap_exp.load_compiled(model, tmp_path)
    model.register_buffer("places", torch.zeros(3, device="meta"), persistent=False)
    with pytest.raises(UserError, match="places is on the meta device; no state_dict holds it"):
        asap_exp.load_compiled(model, state)
    with pytest.raises(UserError, match=r"state_dict has no values: first\.\S+ is on the meta"):
        asap_exp.load_compiled(teacher, copy.deepcopy(compiled).to("meta").state_dict())


def test_model_from_a_state_dict_forgets_the_map_that_it_had(
    teacher: Classifier, compiled: nn.Module
) -> None:
    other = compile_small(teacher, loader(), steps=("ridge",), slices=3, seed=1)
    restored = asap_exp.load_compiled(compiled, other.state_dict())
    assert torch.equal(restored(tokens(9)), other(tokens(9)))
    with pytest.raises(UserError, match="by load_compiled from a folder"):
        asap_exp.drift(restored, tokens(9))


@pytest.mark.parametrize("numbers", [[], [0.0], [0.0, -1.0], [0.0, 1.0, 2.0, 99.0, 0.0, 1, 1, 1]])
def test_damaged_options_in_a_state_dict(
    teacher: Classifier, compiled: nn.Module, numbers: list[float]
) -> None:
    key = "second.attend._extra_state"
    state = {**compiled.state_dict(), key: torch.tensor(numbers, dtype=torch.float64)}
    with pytest.raises(UserError, match="the state_dict is damaged"):
        asap_exp.load_compiled(teacher, state)


def refusal(model: nn.Module, folder: Path) -> list[str]:
    """Return what differs, and then what to do, when a map is refused."""
    with pytest.raises(UserError, match="was fitted to another teacher:\n") as refused:
        asap_exp.load_compiled(model, folder)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


class Unconverted(Classifier):
    """With timm's attention at the same paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (Attention(DIM, HEADS) for _ in range(2))  # type: ignore[assignment]


def test_refused_map_says_what_differs_and_what_to_do(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    asap_exp.save_compiled(compiled, tmp_path)
    has = "the map's teacher has sinkhorn attention (num_iters=8, eps=1.0), this model"
    convert = "asap_exp.convert(model, attention='sinkhorn', num_iters=8, eps=1.0)"
    put_in = f"If this model was trained with that attention, put it in: {convert}. If not, compile"
    model = Unconverted()
    what, advice = refusal(model, tmp_path)
    assert what == f"first, second: {has} no layer that asap_exp.convert made"
    assert advice == f"{put_in} this model"
    what, advice = refusal(asap_exp.convert(model), tmp_path)
    assert (what, advice) == (f"first, second: {has} softmax attention", f"{put_in} this model")
    for options in ({"num_iters": 5, "eps": 0.5}, {"num_iters": 8, "eps": 0.5}):
        what, advice = refusal(asap_exp.convert(model, attention="sinkhorn", **options), tmp_path)
        updates = "num_iters=8 in the map, 5 in this model; " if options["num_iters"] == 5 else ""
        assert what == f"first, second: {updates}eps=1.0 in the map, 0.5 in this model"
        assert advice == f"{put_in} this model"
    refusal(asap_exp.convert(model, attention="sinkhorn", num_iters=8, eps=1.0), tmp_path)

    more = copy.deepcopy(teacher)
    more.third = copy.deepcopy(teacher.first)
    what, advice = refusal(more, tmp_path)
    assert what.startswith("third: the map's teacher has no such layer, this model sinkhorn atten")
    assert advice == "Compile this model, or load the map into the model that it was made of"
    wider = copy.deepcopy(teacher)
    wider.first = MultiHeadAttention(DIM, 4, attend=SinkhornAttention(num_iters=8))
    assert (
        "heads=2 in the map, 4 in this model; head_dim=8 in the map, 4"
        in refusal(wider, tmp_path)[0]
    )
    what, advice = refusal(compiled, tmp_path)
    assert what.startswith("first, second: ")
    assert "this model asap attention (refine=0" in what
    assert advice.startswith("This model is compiled already")
    what, advice = refusal(nn.Linear(2, 2), tmp_path)
    assert advice.startswith("Compile this model, or")


def test_map_without_its_hash_is_refused(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    asap_exp.save_compiled(compiled, tmp_path)
    whole = read_json(tmp_path / "asap.json")
    for value in ({k: x for k, x in whole.items() if k != SEAL}, {**whole, SEAL: None}):
        write_json(tmp_path / "asap.json", value)
        with pytest.raises(UserError, match=r"asap\.json was changed.*asap_exp\.save_compiled"):
            asap_exp.load_compiled(teacher, tmp_path)


@pytest.mark.parametrize("name", ["asap.json", "asap.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "older"])
def test_damaged_folder_is_refused_in_the_words_of_the_library(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path, name: str, damage: str
) -> None:
    asap_exp.save_compiled(compiled, tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    if damage == "older":
        write_json(tmp_path / "asap.json", {"format": 1})
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError) as refused:
        asap_exp.load_compiled(teacher, tmp_path)
    words = str(refused.value)
    assert str(tmp_path / "asap.") in words
    assert words.endswith(
        ". asap_exp.save_compiled writes such a folder, of a model that asap_exp.compile returns"
    )
    assert "istill" not in words


def test_folder_that_cannot_be_written_is_no_matter_of_the_command_line(
    compiled: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "asap.json").mkdir()
    with pytest.raises(UserError, match=r"asap\.json could not .*choose another folder$"):
        asap_exp.save_compiled(compiled, tmp_path)


@pytest.mark.parametrize("given", [None, 5, b"folder", "", ["folder"], nn.Linear(2, 2), True])
def test_what_is_no_folder_is_refused(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path, given: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^folder must be the path of a folder, .*; got ") as saved:
        asap_exp.save_compiled(compiled, given)
    with pytest.raises(UserError, match=r"^source must be .*folder.*; got ") as loading:
        asap_exp.load_compiled(teacher, given)
    assert ("Linear" in str(saved.value)) == isinstance(given, nn.Module)
    assert ("compiled.state_dict()" in str(loading.value)) == isinstance(given, nn.Module)
    assert not list(tmp_path.iterdir())


def test_file_in_place_of_a_folder_is_refused(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    torch.save(compiled.state_dict(), file)
    with pytest.raises(UserError, match=r"folder='.*weights\.pt' is a file; give a folder"):
        asap_exp.save_compiled(compiled, file)
    with pytest.raises(UserError, match=r"is a file; .*, torch\.load\('.*weights\.pt'\)"):
        asap_exp.load_compiled(teacher, file)


def test_map_of_an_unknown_attention_says_what_to_import(
    teacher: Classifier, compiled: nn.Module, tmp_path: Path
) -> None:
    asap_exp.save_compiled(compiled, tmp_path)
    whole = read_json(tmp_path / "asap.json")
    write_sealed(
        tmp_path / "asap.json",
        {**whole, "attentions": {p: {"name": "x"} for p in ("first", "second")}},
    )
    with pytest.raises(UserError, match=r"name=x is not allowed.* or import the module it is in"):
        asap_exp.load_compiled(teacher, tmp_path)
