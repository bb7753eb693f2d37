"""asap_exp.convert: the same outputs with this project's layers, then trained and compiled."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention, AttentionRope
from timm.models import beit
from timm.models.eva import EvaAttention
from torch import nn

import asap_exp
from asap_exp.attention import (
    AsapAttention,
    AttentionLayer,
    MultiHeadAttention,
    SinkhornAttention,
    SoftmaxAttention,
    UniformAttention,
    attention_layers,
    record_inputs,
)
from asap_exp.core.errors import UserError
from tests.attention.convertible import (
    CASES,
    WITHOUT_BIAS,
    Case,
    bert,
    encoder,
    normal,
    of_timm,
    randomised,
    swin,
)

SINKHORN: dict[str, Any] = {"attention": "sinkhorn", "num_iters": 4}


def made(name: str) -> Case:
    return CASES[name]()


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of torch's fused encoder layers and attentions, one for each call."""
    calls: list[str] = []
    for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention"):
        original = getattr(torch, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(torch, name, counted)
    return calls


@pytest.mark.parametrize("name", CASES)
def test_converted_model_gives_the_same_outputs_with_the_same_weights(name: str) -> None:
    case = made(name)
    model, batch = case.model, case.batches[0]
    before = [type(module) for module in model.modules()]
    converted = asap_exp.convert(model)
    with torch.no_grad():
        expected, found = case.forward(model, batch), case.forward(converted, batch)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    layers = attention_layers(converted)
    assert len(layers) >= 2
    assert {type(layer.attend) for layer in layers.values()} == {SoftmaxAttention}
    # Nothing but the layers is another, and the original is as it was.
    assert [type(module) for module in model.modules()] == before
    weights = model.state_dict()
    assert converted.state_dict().keys() == weights.keys()
    assert all(torch.equal(x, weights[key]) for key, x in converted.state_dict().items())
    assert not {p.data_ptr() for p in converted.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }


@pytest.mark.parametrize("name", CASES)
def test_outputs_follow_the_attention_in_the_layers(name: str) -> None:
    """Also without gradients, where torch would take a fused path past the layers."""
    case = made(name)
    converted = asap_exp.convert(case.model)
    batch = case.batches[0]
    with torch.no_grad(), record_inputs(converted) as recorded:
        softmax = case.forward(converted, batch)
    assert recorded.keys() == attention_layers(converted).keys()
    if name in WITHOUT_BIAS:
        for layer in attention_layers(converted).values():
            layer.attend = UniformAttention()
        with torch.no_grad():
            assert (case.forward(converted, batch) - softmax).abs().max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_weights_go_both_ways_and_the_model_can_be_copied(name: str) -> None:
    case = made(name)
    converted = asap_exp.convert(case.model)
    other = made(name).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    converted.load_state_dict(other.state_dict())
    copies = [copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))]
    case.model.load_state_dict(copies[1].state_dict())
    with torch.no_grad():
        expected = case.forward(other, case.batches[0])
        for model in (*copies, case.model):
            found = case.forward(model, case.batches[0])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_BIAS)
def test_trained_on_with_sinkhorn_then_compiled(name: str) -> None:
    case = made(name)
    model = asap_exp.convert(case.model, **SINKHORN, attention_dropout=0).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    before = copy.deepcopy(model.state_dict())
    for batch in case.batches[:2]:
        optimiser.zero_grad()
        case.forward(model, batch).square().mean().backward()
        optimiser.step()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for path, layer in attention_layers(model).items():
        assert any(gradients[f"{path}.{n}"].any() for n, _ in layer.named_parameters())
    assert any(not torch.equal(x, before[n]) for n, x in model.state_dict().items())
    options = {"steps": ("ridge",), "slices": 4, "candidates": 4, "forward": case.forward}
    compiled = asap_exp.compile(model, case.batches, **options)
    layers = attention_layers(compiled)
    assert layers.keys() == attention_layers(model).keys()
    assert {type(layer.attend) for layer in layers.values()} == {AsapAttention}
    one = asap_exp.convert(model, attention="sinkhorn", num_iters=1)
    model.eval()
    batch = case.batches[0]  # it was fitted to
    with torch.no_grad():
        teacher, asap, truncated = (case.forward(m, batch) for m in (model, compiled, one.eval()))
    assert (asap - teacher).norm() < (truncated - teacher).norm()
    assert asap_exp.drift(compiled, batch, forward=case.forward).keys() == layers.keys()


EXPORTED = ["vit", "eva02", "rope vit", "padded encoder", "bert", "hf vit", "swin", "beit"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in EXPORTED]
    + [(name, SINKHORN) for name in EXPORTED if name in WITHOUT_BIAS],
    ids=lambda given: given.get("attention", "softmax") if isinstance(given, dict) else given,
)
def test_converted_model_is_exported_and_traced_whole(name: str, options: dict) -> None:
    case = made(name)
    model = asap_exp.convert(case.model, **options)
    batch, other = case.batches[:2]
    given = ((), batch) if isinstance(batch, dict) else ((batch,),)
    with torch.no_grad():
        expected = case.forward(model, other)
        program = torch.export.export(model, *given).module()
        torch.testing.assert_close(case.forward(program, other), expected)
        traced = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(case.forward(traced, other), expected)


def test_torchs_fused_path_is_taken_before_and_not_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = encoder()
    calls = fused_calls(monkeypatch)
    with torch.no_grad():
        case.forward(case.model, case.batches[0])
        assert calls == ["_transformer_encoder_layer_fwd"] * 2
        case.forward(asap_exp.convert(case.model), case.batches[0])
        asap_exp.convert(case.model, skip=["layers.0"])(**case.batches[0])
    assert calls == ["_transformer_encoder_layer_fwd"] * 3, "by the layer that was left"


def test_nested_tensor_is_attended_to_sequence_by_sequence() -> None:
    case = encoder()
    x, padding = case.batches[0].values()
    with torch.no_grad():
        nested = torch._nested_tensor_from_mask(x, ~padding)
        expected = case.model(nested).to_padded_tensor(0.0)
        for options in ({}, SINKHORN):
            converted = asap_exp.convert(case.model, **options)
            found = converted(nested)
            assert found.is_nested
            dense = case.forward(converted, case.batches[0])
            found = found.to_padded_tensor(0.0, x.shape)
            torch.testing.assert_close(found[~padding], dense)
            if not options:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_padded_tokens_have_no_mass() -> None:
    """The outputs are those of every sequence alone."""
    for case in (encoder(), bert()):
        model = asap_exp.convert(case.model, **SINKHORN)
        batch = case.batches[0]
        x, mask = batch.values()
        valid = mask.bool() if mask.dtype == torch.int64 else ~mask
        name = next(iter(batch))
        with torch.no_grad():
            together = case.forward(model, batch)
            for row in range(len(x)):
                alone = {name: x[row : row + 1, valid[row]]}
                out = model(**alone)
                out = out if isinstance(out, torch.Tensor) else out.last_hidden_state
                first = int(valid[:row].sum())
                torch.testing.assert_close(
                    out[0], together[first : first + out.shape[1]], rtol=0, atol=1e-5
                )


def test_dropout_of_attention_weights_is_kept_for_softmax() -> None:
    case = of_timm("vit_tiny_patch16_224", attn_drop_rate=0.5)
    model, converted = case.model.train(), asap_exp.convert(case.model).train()
    outs = []
    for net in (model, converted):
        torch.manual_seed(0)
        outs.append(net(case.batches[0]))
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-5)
    assert not torch.allclose(converted(case.batches[0]), outs[1]), "another draw"
    without = asap_exp.convert(case.model, attention_dropout=0)
    assert torch.equal(without(case.batches[0]), without(case.batches[0]))
    assert case.model.blocks[0].attn.attn_drop.p == 0.5


@pytest.mark.parametrize(
    "case",
    [
        lambda: of_timm("eva02_tiny_patch14_224", attn_drop_rate=0.1),
        lambda: encoder(dropout=0.1),
        lambda: bert(attention_probs_dropout_prob=0.1),
    ],
)
def test_dropout_stands_in_the_way_of_sinkhorn_until_it_is_0(case: Any) -> None:
    model = case().model
    with pytest.raises(UserError, match=r"dropout of 0\.1.*attention_dropout=0"):
        asap_exp.convert(model, **SINKHORN)
    converted = asap_exp.convert(model)
    for layer in attention_layers(converted).values():
        with pytest.raises(ValueError, match=r"attention dropout of 0\.1, and dropping"):
            layer.attend = SinkhornAttention()
        layer.attention_dropout_rate = 0
        layer.attend = SinkhornAttention()
    for layer in attention_layers(
        asap_exp.convert(model, **SINKHORN, attention_dropout=0)
    ).values():
        assert layer.attention_dropout_rate == 0


def test_in_place_the_parameters_and_what_an_optimiser_holds_stay() -> None:
    case = of_timm("vit_tiny_patch16_224")
    model = case.model
    parameters = dict(model.named_parameters())
    assert asap_exp.convert(model, inplace=True) is model
    assert isinstance(model.blocks[0].attn, MultiHeadAttention)
    assert all(p is parameters[name] for name, p in model.named_parameters())


def test_in_place_layers_that_are_there_stay_the_same_objects() -> None:
    model = asap_exp.convert(of_timm("vit_tiny_patch16_224").model)
    layers = attention_layers(model)
    assert asap_exp.convert(model, **SINKHORN, inplace=True) is model
    assert attention_layers(model) == layers
    assert {layer.attend.name for layer in layers.values()} == {"sinkhorn"}
    asap_exp.convert(model, attention="softmax", attention_dropout=0.1)
    assert {layer.attend.name for layer in layers.values()} == {"sinkhorn"}
    assert {layer.attention_dropout_rate for layer in layers.values()} == {0}


def test_mode_hooks_and_frozen_weights_are_kept() -> None:
    model = of_timm("vit_tiny_patch16_224").model
    seen: list[str] = []
    model.blocks[0].attn.register_forward_hook(lambda *_: seen.append("hook"))
    model.blocks[0].attn.qkv.requires_grad_(False)
    model.blocks[1].train()
    converted = asap_exp.convert(model)
    converted(torch.zeros(1, 3, 16, 16))
    assert seen == ["hook"]
    first, second = (block.attn for block in converted.blocks)
    assert not first.qkv.weight.requires_grad
    assert second.qkv.weight.requires_grad
    assert not first.attend.training
    assert second.attend.training


def test_module_that_is_there_twice_stays_one() -> None:
    block = encoder(layers=1).model.layers[0]
    tied = nn.Sequential(block, block)
    converted = asap_exp.convert(tied)
    assert converted[0].self_attn is converted[1].self_attn
    assert list(attention_layers(converted)) == ["0.self_attn"]


def test_model_that_is_attention_itself_becomes_a_layer() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    converted = asap_exp.convert(attention)
    assert isinstance(converted, AttentionLayer)
    assert isinstance(converted, nn.MultiheadAttention)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(converted(x, x, x), attention(x, x, x), rtol=0, atol=1e-6)


def test_attention_of_a_converted_model_is_changed_later() -> None:
    case = of_timm("vit_tiny_patch16_224")
    sinkhorn = asap_exp.convert(case.model, **SINKHORN)
    again = asap_exp.convert(sinkhorn, attention="relaxed_sinkhorn", num_iters=3)
    attends = [layer.attend for layer in attention_layers(again).values()]
    assert {attend.name for attend in attends} == {"relaxed_sinkhorn"}
    assert attends[0] is not attends[1]
    assert {layer.attend.name for layer in attention_layers(sinkhorn).values()} == {"sinkhorn"}
    restored = asap_exp.convert(again, attention="softmax")
    x = case.batches[0]
    torch.testing.assert_close(restored(x), case.model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["vit", "eva02", "swin", "beit", "padded encoder"])
def test_dtype_of_the_model_stays(name: str, dtype: torch.dtype) -> None:
    case = made(name)
    model = case.model.to(dtype)
    batch = case.batches[0]
    batch = {**batch, "src": batch["src"].to(dtype)} if isinstance(batch, dict) else batch.to(dtype)
    with torch.no_grad():
        expected = case.forward(model, batch)
        found = case.forward(asap_exp.convert(model), batch)
    assert found.dtype == dtype
    error = 1e-12 if dtype == torch.float64 else 0.05 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=error)


def test_swins_windows_can_be_resized() -> None:
    case = swin()
    converted = asap_exp.convert(case.model)
    x = torch.randn(2, 3, 64, 64)
    for model in (case.model, converted):
        model.set_input_size((64, 64), window_size=8)
    torch.testing.assert_close(converted(x), case.model(x), rtol=0, atol=1e-5)


LAYERS: dict[str, tuple[type, dict[str, Any]]] = {
    "gated": (Attention, {"gated": True, "qkv_bias": True}),
    "wide heads": (Attention, {"attn_head_dim": 6, "dim_out": 5, "proj_bias": False}),
    "rope, gated": (AttentionRope, {"gated": True, "num_prefix_tokens": 2}),
    "rope, grouped keys": (AttentionRope, {"qkv_fused": False, "num_kv_heads": 2}),
    "rope, halves": (AttentionRope, {"rotate_half": True, "qk_norm": True}),
    "eva, norms": (EvaAttention, {"qk_norm": True, "scale_norm": True, "gated": True}),
    "eva, bias apart": (EvaAttention, {"qkv_bias_separate": True, "scale_norm": False}),
    "eva, no bias": (EvaAttention, {"qkv_bias": False, "scale_norm": False}),
    "beit, bias apart": (beit.Attention, {"qkv_bias": True, "qkv_bias_separate": True}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_timm_with_rare_options(name: str) -> None:
    kind, options = LAYERS[name]
    known = inspect.signature(kind).parameters
    if missing := sorted(options.keys() - known.keys()):
        pytest.skip(f"this timm's {kind.__name__} has no {missing[0]} yet")
    if "norm_layer" in known:
        options = {"norm_layer": nn.LayerNorm, **options}
    layer = randomised(kind(16, 4, **options))
    converted = asap_exp.convert(layer)
    x = normal(2, 7, 16, seed=0)
    more: dict[str, Any] = {}
    if "rope" in inspect.signature(layer.forward).parameters:
        angles = normal(7 - layer.num_prefix_tokens, 4, seed=1)
        more = {"rope": torch.cat([angles.sin(), angles.cos()], dim=-1)}
    for given in (more, {}):
        torch.testing.assert_close(converted(x, **given), layer(x, **given), rtol=0, atol=1e-5)
    if "attn_mask" in inspect.signature(layer.forward).parameters:
        more["attn_mask"] = normal(7, 7, seed=2)
        torch.testing.assert_close(converted(x, **more), layer(x, **more), rtol=0, atol=1e-5)
    sinkhorn = asap_exp.convert(layer, **SINKHORN)
    padding = torch.arange(7) >= torch.tensor([7, 4])[:, None]
    if "key_padding_mask" in inspect.signature(sinkhorn.forward).parameters:
        out = sinkhorn(x, key_padding_mask=padding)
        torch.testing.assert_close(out[1:, :4], sinkhorn(x[1:, :4]), rtol=0, atol=1e-5)
