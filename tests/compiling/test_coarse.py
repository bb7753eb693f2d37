"""asap_exp.compile(model, method="coarse"): without a fit; saved and loaded like a map."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import asap_exp
from asap_exp.attention import (
    Attention,
    CoarseAttention,
    SinkhornAttention,
    attention_config,
    attention_layers,
    build_attention,
    swap_attention,
)
from asap_exp.attention.layer import STATED
from asap_exp.calibration.config import CoarseKeys
from asap_exp.calibration.steps import AdamFit
from asap_exp.compiling import artifact_of
from asap_exp.compiling.saving import remember
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.sealed import SEAL, write_sealed
from tests.small_model import Classifier, compile_small, kl, loader, tokens


def made_coarse(model: nn.Module, **options: object) -> nn.Module:
    return asap_exp.compile(model, method="coarse", progress=False, **options)


def test_layers_become_coarse_with_the_updates_and_eps_of_the_teacher(teacher: Classifier) -> None:
    model = copy.deepcopy(teacher).train()
    model.second.attend = SinkhornAttention(num_iters=3, eps=0.5)
    options = {"tokens": 4, "subset": "farthest", "weights": "voronoi", "one_pass": True}
    coarse = made_coarse(model, **options, seed=2, backend="reference")
    for path, layer in attention_layers(coarse).items():
        attend, before = layer.attend, model.get_submodule(path).attend
        assert isinstance(attend, CoarseAttention)
        assert isinstance(before, SinkhornAttention), "the teacher stays"
        assert (attend.num_iters, attend.eps) == (before.num_iters, before.eps)
        assert {name: getattr(attend, name) for name in options} == options
        assert (attend.seed, attend.backend) == (2, "reference")
    assert not coarse.training
    assert not any(parameter.requires_grad for parameter in coarse.parameters())
    coarse.load_state_dict(model.state_dict())


@pytest.mark.parametrize("one_pass", [False, True])
def test_predictions_come_closer_with_more_tokens(teacher: Classifier, one_pass: bool) -> None:
    x = tokens(9)
    few, more, every = (
        kl(teacher, made_coarse(teacher, tokens=count, one_pass=one_pass), x) for count in (2, 4, 8)
    )
    assert few > 1.5 * more
    assert every < 1e-9


def test_only_the_named_layers_become_coarse(teacher: Classifier) -> None:
    coarse = made_coarse(teacher, layers=["second"], tokens=4)
    kinds = {path: layer.attend.name for path, layer in attention_layers(coarse).items()}
    assert kinds == {"first": "sinkhorn", "second": "coarse"}


def test_progress_says_what_it_does(
    teacher: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    asap_exp.compile(teacher, method="coarse")
    assert "Compiling 2 layers: coarse duals, without a fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 4},
        {"tokens": 3, "subset": "random", "seed": 5, "weights": "voronoi", "one_pass": True},
        {"tokens": 4, "subset": "grid", "grid_width": 4, "layers": ["second"]},
    ],
)
def test_saved_and_loaded_model_is_the_same(
    teacher: Classifier, tmp_path: Path, options: dict
) -> None:
    coarse, x = made_coarse(teacher, **options), tokens(9)
    asap_exp.save_compiled(coarse, tmp_path / "map")
    loaded = asap_exp.load_compiled(teacher, tmp_path / "map", backend="reference")
    assert torch.equal(loaded(x), coarse(x))
    assert {layer.attend.backend for layer in attention_layers(loaded).values()} <= {
        "reference",
        "auto",
    }
    asap_exp.save_compiled(loaded, tmp_path / "again")
    first, again = (read_json(tmp_path / name / "asap.json") for name in ("map", "again"))
    assert first == again
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.second.qkv.weight.mul_(2)
    with pytest.raises(UserError, match="another teacher"):
        asap_exp.load_compiled(other, tmp_path / "map")


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 4},
        {
            "tokens": 3,
            "subset": "random",
            "seed": 2**60 + 1,
            "weights": "voronoi",
            "one_pass": True,
        },
        {"tokens": 4, "subset": "grid", "grid_width": 4, "layers": ["second"]},
    ],
)
def test_state_dict_says_which_layers_are_coarse_and_how(
    teacher: Classifier, tmp_path: Path, options: dict
) -> None:
    coarse, x = made_coarse(teacher, **options), tokens(9)
    asap_exp.save_compiled(coarse, tmp_path)
    for model in (coarse, copy.deepcopy(coarse), asap_exp.load_compiled(teacher, tmp_path)):
        state = {
            name: tensor.half().float() if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        }
        loaded = asap_exp.load_compiled(teacher, state, backend="reference")
        for path, layer in attention_layers(loaded).items():
            assert attention_config(layer.attend) == attention_config(
                coarse.get_submodule(path).attend
            )
        assert torch.equal(asap_exp.load_compiled(teacher, model.state_dict())(x), coarse(x))
        assert loaded.state_dict().keys() == state.keys()
    assert teacher.state_dict().keys() == copy.deepcopy(teacher).state_dict().keys()
    assert not any(STATED in name for name in teacher.state_dict())


def test_state_dict_of_coarse_layers_beside_a_map_restores_both(teacher: Classifier) -> None:
    coarse, x = made_coarse(teacher, tokens=4, layers=["first"]), tokens(9)
    both = compile_small(coarse, loader(), steps=("ridge",))
    loaded = asap_exp.load_compiled(teacher, both.state_dict())
    assert [layer.attend.name for layer in attention_layers(loaded).values()] == ["coarse", "asap"]
    assert torch.equal(loaded(x), both(x))


def test_state_dict_and_coarse_layers_must_agree(teacher: Classifier) -> None:
    coarse = made_coarse(teacher, tokens=4)
    state = coarse.state_dict()
    coarse.load_state_dict({k: x for k, x in state.items() if STATED not in k})  # older
    with pytest.raises(RuntimeError, match="Unexpected key"):
        copy.deepcopy(teacher).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"first\._attention is of .*'tokens': 4"):
        made_coarse(teacher, tokens=2).load_state_dict(state)
    key = f"first.{STATED}"
    for damaged in (state[key][:-3], torch.zeros(0, dtype=torch.uint8)):
        with pytest.raises(UserError, match=rf"damaged: {key} names no attention"):
            asap_exp.load_compiled(teacher, {**state, key: damaged})


def test_shorter_sinkhorn_that_a_budget_chose_is_in_the_state_dict(teacher: Classifier) -> None:
    model, x = copy.deepcopy(teacher), tokens(9)
    artifact = artifact_of(made_coarse(teacher, tokens=4))
    swap_attention(model, {path: SinkhornAttention(num_iters=2) for path in artifact.layers})
    remember(model, artifact, "auto")
    assert torch.equal(asap_exp.load_compiled(teacher, model.state_dict())(x), model(x))


def copy_with(model: Classifier, attend: Attention) -> Classifier:
    model = copy.deepcopy(model)
    model.second.attend = attend
    return model


class Mine(Attention):
    """Not registered, so that nothing can build it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        return v

    def plan(self, q: Tensor, k: Tensor, **options: object) -> Tensor:
        raise NotImplementedError


def test_state_dict_tells_of_an_attention_that_was_put_in_since(
    teacher: Classifier, tmp_path: Path
) -> None:
    coarse, x = made_coarse(teacher, tokens=4), tokens(9)
    shorter = SinkhornAttention(num_iters=2)
    coarse.first.attend = shorter
    with pytest.raises(UserError, match=r"Keep the whole model instead"):
        asap_exp.save_compiled(coarse, tmp_path)
    loaded = asap_exp.load_compiled(teacher, coarse.state_dict())
    assert torch.equal(loaded(x), coarse(x))
    assert loaded.first.attend.num_iters == 2
    coarse.first.attend = Mine()
    with pytest.raises(UserError, match="at first the model holds Mine attention, and it was"):
        asap_exp.save_compiled(coarse, tmp_path)
    with pytest.raises(UserError, match="second has Mine attention; only Sinkhorn layers"):
        made_coarse(copy_with(teacher, Mine()), layers=["second"])
    with pytest.raises(UserError, match=r"Mine is not allowed.* or import the module"):
        asap_exp.load_compiled(teacher, coarse.state_dict())


def test_state_dict_holds_learned_parameters_of_an_attention(
    teacher: Classifier, compiled: nn.Module
) -> None:
    model, x = copy.deepcopy(compiled), tokens(9)
    model.first.attend = build_attention({"name": "hedgehog"})
    model.eval()
    before = torch.get_rng_state()
    loaded = asap_exp.load_compiled(teacher, model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded(x), model(x))
    assert [a.attend.name for a in attention_layers(loaded).values()] == ["hedgehog", "asap"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_drift_is_refused_without_a_calibration(teacher: Classifier, tmp_path: Path) -> None:
    coarse = made_coarse(teacher, tokens=4)
    asap_exp.save_compiled(coarse, tmp_path)
    for model in (coarse, asap_exp.load_compiled(teacher, tmp_path)):
        with pytest.raises(UserError, match="nothing was fitted to the layers of this model"):
            asap_exp.drift(model, tokens(9))


def test_artifact_without_a_fit_must_say_so(teacher: Classifier, tmp_path: Path) -> None:
    """What a map must have is missing only where nothing was fitted."""
    asap_exp.save_compiled(made_coarse(teacher, tokens=4), tmp_path)
    whole = {k: x for k, x in read_json(tmp_path / "asap.json").items() if k != SEAL}
    for changes in (
        {"steps": ["ridge"]},
        {"coarse": None},
        {"form": None},
        {"coarse": {"tokens": 0, "choice": "sequence", "weights": "equal"}},
    ):
        write_sealed(
            tmp_path / "asap.json", {**whole, "calibration": {**whole["calibration"], **changes}}
        )
        with pytest.raises(UserError, match="is damaged"):
            asap_exp.load_compiled(teacher, tmp_path)


def test_coarse_layers_beside_a_map_are_in_the_state_dict_alone(
    teacher: Classifier, tmp_path: Path
) -> None:
    half = compile_small(teacher, loader(), layers=["first"], steps=("ridge",))
    both, x = made_coarse(half, tokens=4), tokens(9)
    assert [a.attend.name for a in attention_layers(both).values()] == ["asap", "coarse"]
    with pytest.raises(UserError, match=r"^first and second were .* calls, which differ in method"):
        asap_exp.save_compiled(both, tmp_path)
    assert torch.equal(asap_exp.load_compiled(teacher, both.state_dict())(x), both(x))
    assert asap_exp.drift(both, x) == asap_exp.drift(half, x)
    assert asap_exp.drift(both, x).keys() == {"first"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loader": loader()}, "loader cannot be given with method='coarse'"),
        ({"loader": np.zeros((3, 2))}, "loader cannot be given with method='coarse'"),
        ({"slices": 4, "refine": 1}, "slices, refine cannot be given with method='coarse'"),
        ({"tokens": 0}, "^tokens must be at least 1, got 0"),
        ({"subset": "all"}, "subset must be one of sequence, grid"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"layers": ["third"]}, "no attention layer at third"),
        ({"progress": 1}, "progress=1 has the wrong type"),
        ({"method": "fine"}, "method=fine is not allowed; choose one of asap, coarse"),
    ],
)
def test_wrong_arguments(teacher: Classifier, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        asap_exp.compile(teacher, **{"method": "coarse", **options})


def test_keywords_of_other_methods_are_refused(teacher: Classifier) -> None:
    with pytest.raises(TypeError, match=r"no keyword 'num_iters'; it takes tokens, subset"):
        made_coarse(teacher, num_iters=3)
    with pytest.raises(TypeError, match=r"no keyword 'implicit_steps'; it takes tokens, subset"):
        made_coarse(teacher, implicit_steps=3)
    more = {"learned_slices": AdamFit(3, 0.1), "coarse": CoarseKeys(tokens=4)}
    for name, value in more.items():
        with pytest.raises(TypeError, match=rf"model\. {name} is of method='asap', which fits"):
            made_coarse(teacher, **{name: value})
    with pytest.raises(UserError, match=r"loader must be given.*method='coarse' needs none"):
        asap_exp.compile(teacher)


def test_other_updates_than_sinkhorns_are_refused(teacher: Classifier) -> None:
    model = copy.deepcopy(teacher)
    model.second.attend = build_attention({"name": "sinkformer"})
    with pytest.raises(UserError, match=r"at second has sinkformer attention.*other layers"):
        made_coarse(model)
    with torch.no_grad():
        assert made_coarse(model, layers=["first"])(tokens(9)).isfinite().all()
