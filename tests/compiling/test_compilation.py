"""asap_exp.compile on a model that this project knows nothing of but its attention layers."""

import copy
import inspect
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asap_exp
from asap_exp.attention import (
    AsapAttention,
    AttentionLayer,
    MultiHeadAttention,
    SinkhornAttention,
    SoftmaxAttention,
    attention_layers,
)
from asap_exp.calibration.batches import content_hash, num_samples, on_device
from asap_exp.calibration.config import CoarseKeys
from asap_exp.calibration.steps import with_settings
from asap_exp.core.composing import compose
from asap_exp.core.errors import UserError
from asap_exp.data.tokens import TokenBatch
from asap_exp.distill.config import DistillConfig
from asap_exp.models import load_net
from tests.conftest import Pipeline
from tests.small_model import CLASSES, DIM, Classifier, batches, compile_small, kl, loader, tokens

pytestmark = pytest.mark.slow


def test_every_layer_becomes_asap_and_the_teacher_stays(
    teacher: Classifier, compiled: nn.Module
) -> None:
    assert all(isinstance(a.attend, AsapAttention) for a in attention_layers(compiled).values())
    assert all(isinstance(a.attend, SinkhornAttention) for a in attention_layers(teacher).values())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert not compiled.training
    assert not any(parameter.requires_grad for parameter in compiled.parameters())


def test_predictions_come_close_to_the_teachers(teacher: Classifier, compiled: nn.Module) -> None:
    x = tokens(9)
    truncated = Classifier()
    for layer in attention_layers(truncated).values():
        layer.attend = SinkhornAttention(num_iters=1)
    assert kl(teacher, compiled, x) < 0.5 * kl(teacher, truncated, x)


def test_texts_are_counted_and_hashed_by_their_tokens() -> None:
    """Two texts of three tokens, and five masked tokens to be predicted of other texts."""
    ids, padding = torch.ones(2, 3, dtype=torch.int64), torch.tensor([[False] * 3, [True] * 3])
    targets = torch.zeros(5, dtype=torch.int64)
    texts = [
        (TokenBatch(ids), targets),
        (TokenBatch(2 * ids), targets),
        (TokenBatch(ids, padding), targets),
    ]
    assert [num_samples(batch) for batch in texts] == [2, 2, 2]
    assert len({content_hash([batch]) for batch in texts}) == 3
    (moved, _) = on_device(texts[2], torch.device("meta"))
    assert moved.ids.is_meta
    assert moved.key_padding_mask.is_meta


def test_steps_are_those_asked_for(teacher: Classifier) -> None:
    x = tokens(9)
    ridge, refined = (
        compile_small(teacher, loader(), **options)
        for options in (
            {"steps": ("ridge",)},
            {"steps": ("ridge", "learned_slices", "end_to_end"), "refine": 1},
        )
    )
    assert kl(teacher, refined, x) < kl(teacher, ridge, x)
    assert refined.asap_artifact.identity["calibration"]["steps"] == [
        "ridge", "learned_slices", "end_to_end",
    ]  # fmt: skip
    assert {a["refine"] for a in refined.asap_artifact.identity["attentions"].values()} == {1}


@pytest.mark.parametrize("masked", [False, True])
def test_exported_program_equals_the_model(compiled: nn.Module, masked: bool) -> None:
    mask = torch.arange(8) >= torch.arange(3, 9)[:, None]
    example, other = ((tokens(seed, rows=6), *([mask] if masked else [])) for seed in (7, 8))
    program = torch.export.export(compiled, example).module()
    torch.testing.assert_close(program(*other), compiled(*other), rtol=0, atol=0)


def test_exported_program_takes_batches_of_any_size(compiled: nn.Module) -> None:
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(
        compiled, (tokens(7, rows=6),), dynamic_shapes={"x": {0: rows}}
    ).module()
    x = tokens(8, rows=11)
    torch.testing.assert_close(program(x), compiled(x))


def test_timm_vit_is_compiled_and_exported(shared_pipeline: Pipeline) -> None:
    net = load_net(shared_pipeline.teacher)
    images = [torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    compiled = compile_small(net, images)
    assert all(isinstance(a.attend, AsapAttention) for a in attention_layers(compiled).values())
    program = torch.export.export(compiled, (images[0],)).module()
    torch.testing.assert_close(program(images[1]), compiled(images[1]))
    assert kl(net, compiled, images[2]) < 0.05


def test_one_layer_alone(teacher: Classifier) -> None:
    compiled = compile_small(teacher, loader(), layers=["second"])
    attends = {path: layer.attend.name for path, layer in attention_layers(compiled).items()}
    assert attends == {"first": "sinkhorn", "second": "asap"}
    assert asap_exp.drift(compiled, tokens(9)).keys() == {"second"}


def test_drift_is_one_on_calibration_data_and_grows_with_a_shift(compiled: nn.Module) -> None:
    """The held-out batch is the last of the loader; layer 0 sees its inputs as they are."""
    (held_out, _) = loader()[-1]
    assert asap_exp.drift(compiled, held_out) == pytest.approx({"first": 1, "second": 1}, rel=1e-5)
    similar = asap_exp.drift(compiled, tokens(9))["first"]
    shifted = [asap_exp.drift(compiled, s * held_out + 1)["first"] for s in (1.2, 1.5, 2)]
    assert 0.8 < similar < 1.25 < shifted[0] < shifted[1] < shifted[2]


def test_forward_says_how_the_model_is_called(teacher: Classifier) -> None:
    """Batches as dictionaries, with padding: as a text encoder takes them."""
    mask = torch.arange(8) >= (torch.arange(48) % 7 + 2)[:, None]
    padded = [{"x": x, "key_padding_mask": mask} for x, _ in loader()]

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch)

    compiled = compile_small(teacher, padded, forward=forward)
    poisoned = [{**batch, "x": batch["x"].masked_fill(mask[:, :, None], 1e3)} for batch in padded]
    # What is padded is never seen: q, k and v of padded tokens are not those of the calibration.
    again = compile_small(teacher, poisoned, forward=forward)
    for name, tensor in compiled.asap_artifact.tensors.items():
        if name.startswith("first."):
            assert torch.equal(tensor, again.asap_artifact.tensors[name])
    with pytest.raises(UserError, match=r"type dict; say how .* forward=lambda"):
        compile_small(teacher, padded)


def test_loader_is_read_no_further_than_needed(teacher: Classifier) -> None:
    read: list[int] = []

    def endless():
        while True:
            read.append(len(read))
            yield tokens(len(read))

    compiled = asap_exp.compile(teacher, endless(), samples=144, steps=("ridge",), slices=2)
    assert len(read) <= 4
    assert compiled.asap_artifact.identity["calibration_set"]["rows"] == 96


def test_predictions_of_another_type_are_refused_by_end_to_end_alone(teacher: Classifier) -> None:
    def forward(model: nn.Module, batch: tuple[Tensor, None]) -> dict[str, Tensor]:
        return {"logits": model(batch[0])}

    asap_exp.compile(teacher, loader(), steps=("ridge",), slices=2, forward=forward)
    with pytest.raises(UserError, match=r"gives a dict where end_to_end needs .*\['logits'\]"):
        compile_small(teacher, loader(), steps=("ridge", "end_to_end"), forward=forward)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_compiles_where_gradients_are_off(
    teacher: Classifier, off: Callable, tmp_path: Path
) -> None:
    """All of it, with a model and batches made there; the results are those of elsewhere."""
    options: dict[str, Any] = {"steps": ("ridge", "kl", "learned_slices", "end_to_end")}
    expected = compile_small(teacher, loader(), **options)
    expected_drift = asap_exp.drift(expected, tokens(9))
    with off():
        own = Classifier().eval()
        compiled = compile_small(own, loader(), **options)
        asap_exp.save_compiled(compiled, tmp_path)
        loaded = asap_exp.load_compiled(own, tmp_path)
        assert asap_exp.drift(loaded, tokens(9)) == asap_exp.drift(compiled, tokens(9))
        assert asap_exp.drift(loaded, tokens(9)) == expected_drift
    for model in (compiled, loaded):
        x = tokens(9).requires_grad_()
        out = model(x)
        assert torch.equal(out, expected(x))
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        assert gradient.isfinite().all()
        assert not any(t.is_inference() for t in model.state_dict().values())
        model.requires_grad_()
        model(tokens(9)).sum().backward()
        assert model.first.qkv.weight.grad is not None


class Gated(nn.Module):
    """Multiplies by its input, which a gradient then has to remember."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Classifier()

    def forward(self, x: Tensor) -> Tensor:
        hidden = x * self.inner.first(x)
        return self.inner.head((hidden + x * self.inner.second(hidden)).mean(dim=1))


def test_batches_made_in_inference_mode() -> None:
    with torch.inference_mode():
        made = batches(1, 2, 3)
    compile_small(Gated(), made, steps=("ridge", "end_to_end"))


def poisoned(index: int, value: float, count: int = 5) -> list[tuple[Tensor, None]]:
    made = batches(*range(count))
    made[index][0][7, 3, 2] = value
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_calibration_batch_that_is_not_finite_is_named(
    teacher: Classifier, index: int, value: float
) -> None:
    """Of those to fit on and of those held out."""
    words = rf"batch {index + 1} of 5 \(index {index}\) is not finite.* layer at first"
    with pytest.raises(UserError, match=words):
        compile_small(teacher, poisoned(index, value))


def test_layer_whose_queries_are_the_first_that_are_not_finite_is_named() -> None:
    broken = Classifier()
    with torch.no_grad():
        broken.first.proj.bias[0] = math.inf
    options: dict[str, Any]
    for options in ({}, {"layers": ["second"]}):
        with pytest.raises(
            UserError, match=r"on calibration batch 1 of 5 .* finite itself.*layer at second are"
        ) as refused:
            compile_small(broken, loader(), **options)
        assert "32-true" not in str(refused.value), "which it has"
    half = r"; or, if bf16-mixed overflows, take precision=\"32-true\"$"
    with pytest.raises(UserError, match=half):
        compile_small(broken, loader(), precision="bf16-mixed")
    # Where the first layer is recorded alone, the predictions show it.
    for options in ({"layers": ["first"]}, {"sequential": True}):
        with pytest.raises(
            UserError, match=r"predictions on .* weights of layer first\.proj\.bias"
        ):
            compile_small(broken, loader(), **options)


STEPS = [("ridge",), ("ridge", "kl"), ("ridge", "learned_slices"), ("ridge", "end_to_end")]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["head.bias", "second.proj.weight", "second.qkv.weight"])
def test_predictions_that_are_not_finite_are_refused_by_every_calibration(
    steps: tuple[str, ...], name: str
) -> None:
    broken = Classifier()
    with torch.no_grad():
        broken.get_parameter(name)[-1] = math.nan  # of qkv: the last of v
    words = rf"predictions on calibration batch 1 of 5 .* hold NaN.*layer {re.escape(name)} are not"
    with pytest.raises(UserError, match=words):
        compile_small(broken, loader(), steps=steps)


def test_a_layer_that_overflows_is_named_and_a_class_left_out_is_no_fault() -> None:
    teacher = Classifier()
    with torch.no_grad():
        teacher.second.proj.weight.fill_(3e38)
    with pytest.raises(UserError, match=r"output of layer second\.proj \(Linear\) is not finite"):
        compile_small(teacher, loader(), steps=("ridge",))

    def forward(model: nn.Module, batch: tuple[Tensor, None]) -> Tensor:
        return model(batch[0]).index_fill(1, torch.tensor([0]), -math.inf)

    compile_small(Classifier(), loader(), steps=("ridge",), forward=forward)


def test_a_model_on_the_meta_device_is_a_sentence(tmp_path: Path) -> None:
    with torch.device("meta"):
        layer = MultiHeadAttention(DIM, 2, attend=SinkhornAttention(num_iters=4))
    for use in (
        lambda: compile_small(layer, loader()),
        lambda: asap_exp.load_compiled(layer, tmp_path),
    ):
        with pytest.raises(UserError, match=r"is on the meta device; give it memory"):
            use()


def test_what_is_not_finite_and_never_read_is_no_fault(teacher: Classifier) -> None:
    """Labels, additive masks, tokens that are padded."""
    labels = torch.full((48,), math.nan)
    compile_small(teacher, [(x, labels) for x, _ in loader()])
    mask = torch.arange(8) >= (torch.arange(48) % 7 + 2)[:, None]
    padded = [x.masked_fill(mask[:, :, None], math.nan) for x, _ in loader()]
    compile_small(teacher, padded, layers=["first"], forward=lambda model, x: model(x, mask))


def test_drift_on_a_batch_that_is_not_finite_is_refused(compiled: nn.Module) -> None:
    with pytest.raises(UserError, match="batch 1 is not finite"):
        asap_exp.drift(compiled, poisoned(0, math.nan)[0])


class Tied(nn.Module):
    """One layer `count` times in a forward pass, or as many layers with its weights."""

    def __init__(self, count: int, *, tied: bool) -> None:
        super().__init__()
        net = Classifier()
        with torch.no_grad():
            net.first.qkv.weight[: 2 * DIM] *= 1.5
        layers = [net.first] * count if tied else [copy.deepcopy(net.first) for _ in range(count)]
        self.layers, self.head = nn.ModuleList(layers), net.head

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(dim=1))


@pytest.mark.parametrize("options", [{}, {"sequential": True}])
def test_layer_that_runs_more_than_once_is_fitted_to_all_its_calls(options: dict) -> None:
    """As well, about, as layers of the same weights with a map each."""
    fast: dict[str, Any] = {"slices": 6, "steps": ("ridge", "kl"), **options}
    found = {}
    for tied in (True, False):
        model = Tied(3, tied=tied).eval()
        compiled = compile_small(model, loader(), **fast)
        found[tied] = kl(model, compiled, tokens(9))
        assert len(attention_layers(compiled)) == (1 if tied else 3)
    assert found[True] < 1.2 * found[False]


def test_drift_is_of_all_calls() -> None:
    model = Tied(2, tied=True).eval()
    compiled = compile_small(model, loader())
    (held_out, _) = loader()[-1]
    assert asap_exp.drift(compiled, held_out) == pytest.approx({"layers.0": 1}, rel=1e-5)


def test_layers_that_share_one_attention_are_compiled_as_others(
    teacher: Classifier, compiled: nn.Module
) -> None:
    sharing = copy.deepcopy(teacher)
    sharing.second.attend = sharing.first.attend
    again = compile_small(sharing, loader())
    assert torch.equal(again(tokens(9)), compiled(tokens(9)))


def test_layer_that_runs_on_some_batches_alone_is_refused(teacher: Classifier) -> None:
    def forward(model: nn.Module, batch: tuple[Tensor, None]) -> Tensor:
        return model(batch[0]) if batch[0].sum() > 0 else model.first(batch[0])

    signs = [bool(x.sum() > 0) for x, _ in loader()]
    number = signs.index(False) + 1
    assert number > 1
    with pytest.raises(UserError, match=rf"at second on calibration batch {number} of 5"):
        compile_small(teacher, loader(), forward=forward)


def test_defaults_are_those_of_the_stage() -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(asap_exp.compile).parameters.items()
    }
    stage = compose("distill", ["calibration=learned_slices"], DistillConfig).calibration
    steps = with_settings()
    for key, value in vars(stage).items():
        if key in ("name", "samples", "holdout", "batch_size"):
            continue  # of the stage's own data
        if key in ("steps", "candidates"):
            continue  # of a calibration that takes seconds on a CPU
        if key in ("coarse", "form"):
            assert value == {"coarse": CoarseKeys(), "form": "two_sided"}[key]
            continue
        if key in steps:
            assert value == steps[key].defaults() == steps[key]().settings
        else:
            assert defaults[key] == value
    assert (defaults["steps"], defaults["candidates"]) == (("ridge",), None)
    assert defaults["samples"] == 512
    assert asdict(stage.kl).keys() == {"updates", "lr"}


ALONE = """
import sys

for name in {blocked}:
    sys.modules[name] = None  # not installed, for whoever imports it
import asap_exp
assert "torch" not in sys.modules, "importing the package must stay light"
import torch
from asap_exp.calibration.steps import AdamFit
from tests.small_model import Classifier, batches
steps = {{"steps": ("ridge", "kl"), "kl": AdamFit(updates=20, lr=0.02)}}
compiled = asap_exp.compile(Classifier(), batches(1, 2), slices=2, **steps)
asap_exp.save_compiled(compiled, sys.argv[1])
loaded = asap_exp.load_compiled(Classifier(), sys.argv[1])
x = batches(3)[0][0]
assert torch.equal(loaded(x), compiled(x))
print(len(x), *loaded(x).shape[1:])
"""
BLOCKED = {
    "hydra", "omegaconf", "lightning", "timm", "torchvision", "datasets", "wandb", "sklearn",
    "matplotlib",
}  # fmt: skip


def test_runs_where_hydra_and_lightning_are_not_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(blocked=BLOCKED), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"48 {CLASSES}"


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = asap_exp.compil


class Bare(AttentionLayer):
    """A layer without weights: its inputs are the queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 1, DIM
        self.attend = SoftmaxAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attended(x[:, None], 3 * x[:, None], x[:, None])


def test_a_model_without_weights_is_converted_and_compiled(tmp_path: Path) -> None:
    model = asap_exp.convert(nn.Sequential(Bare()), attention="sinkhorn", num_iters=8)
    compiled = compile_small(model, [x for x, _ in batches(1, 2, rows=6)], steps=("ridge",))
    assert asap_exp.drift(compiled, tokens(9)).keys() == {"0"}
    asap_exp.save_compiled(compiled, tmp_path)
    loaded = asap_exp.load_compiled(model, tmp_path)
    torch.testing.assert_close(loaded(tokens(9)), compiled(tokens(9)), rtol=0, atol=0)
