"""The Vision Transformer with this project's attention, and loading of trained weights."""

import pytest
import torch
from torch import Tensor, nn

from asap_exp.attention import (
    ATTENTIONS,
    AsapAttention,
    MultiHeadAttention,
    UniformAttention,
    attention_layers,
    swapped,
)
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.tensors import fingerprint, load_tensors, save_tensors
from asap_exp.models import build_net, build_vit, load_net
from asap_exp.ops.backend import fused
from tests.fake_runs import fake_run, train_config

TINY = ("model.dim=16", "model.depth=2", "model.heads=2", "model.patch_size=4")
TRAINABLE = sorted(name for name, cls in ATTENTIONS.items() if not cls.needs_calibration)


def make_net(*overrides: str, task: str = "digits", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_net(train_config(*TINY, *overrides, task=task))


def loud(net: nn.Module) -> nn.Module:
    """Scale up the weights: the blocks of a new network hardly change the residual stream."""
    with torch.no_grad():
        for parameter in net.blocks.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return net


def images(task: str = "digits", batch: int = 3) -> Tensor:
    shape = {"digits": (1, 8, 8), "cifar": (3, 32, 32)}[task]
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


def test_norms_on_q_and_k_are_rms_norms_whatever_the_blocks_have():
    """The weights keep their names, also in saved files."""
    net = make_net("model.qk_norm=true")
    for layer in attention_layers(net).values():
        assert type(layer.q_norm) is type(layer.k_norm) is nn.RMSNorm
    names = [name for name in net.state_dict() if name.startswith("blocks.0.attn")]
    assert sorted(name.removeprefix("blocks.0.attn.") for name in names) == [
        "k_norm.weight", "proj.bias", "proj.weight", "q_norm.weight", "qkv.bias", "qkv.weight",
    ]  # fmt: skip


def test_state_that_a_weight_file_cannot_hold_is_refused_before_the_training(monkeypatch):
    monkeypatch.setattr(UniformAttention, "get_extra_state", lambda _: {"seen": 3}, raising=False)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.attend\._extra_state.* is a dict"):
        make_net("attention=uniform")


@pytest.mark.parametrize(("task", "classes"), [("digits", 10), ("cifar", 100)])
def test_output_is_one_logit_a_class(task, classes):
    assert make_net(task=task)(images(task)).shape == (3, classes)


def test_cifar10_has_ten_classes():
    assert make_net("data.name=cifar10", task="cifar")(images("cifar")).shape == (3, 10)


def test_images_of_another_size():
    net = make_net("data.image_size=12")
    assert net(torch.randn(2, 1, 12, 12)).shape == (2, 10)


@pytest.mark.parametrize("name", TRAINABLE)
def test_attention_is_in_every_block(name):
    net = make_net(f"attention={name}", "model.depth=3")
    layers = attention_layers(net)
    assert list(layers) == [f"blocks.{i}.attn" for i in range(3)]
    assert {type(layer.attend) for layer in layers.values()} == {ATTENTIONS[name]}
    assert len({id(layer.attend) for layer in layers.values()}) == 3
    assert {(layer.num_heads, layer.head_dim) for layer in layers.values()} == {(2, 8)}
    # No attention of timm itself is left.
    named = [m for m in net.modules() if "Attention" in type(m).__name__]
    assert all(isinstance(m, (MultiHeadAttention, ATTENTIONS[name])) for m in named)


def test_options_reach_every_block():
    net = make_net("attention.num_iters=3", "attention.eps=0.5")
    for layer in attention_layers(net).values():
        assert (layer.attend.num_iters, layer.attend.eps) == (3, 0.5)


@pytest.mark.parametrize("name", TRAINABLE)
def test_weights_are_the_same_whatever_the_attention(name):
    expected, found = make_net().state_dict(), make_net(f"attention={name}").state_dict()
    assert [key for key in found if ".attend." not in key] == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_attention_makes_a_difference():
    # With all tokens in its subset, coarse attention is Sinkhorn's.
    part = {"coarse": ["attention.tokens=2"]}
    outs = [loud(make_net(f"attention={n}", *part.get(n, ())))(images()) for n in TRAINABLE]
    for i, out in enumerate(outs):
        assert all((out - other).abs().max() > 1e-4 for other in outs[:i])


def test_swapping_changes_no_parameter_and_no_name():
    net = loud(make_net()).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = net(images())
    with swapped(net, {path: UniformAttention() for path in attention_layers(net)}):
        inside = net.state_dict()
        assert list(inside) == list(before)
        assert all(torch.equal(inside[name], before[name]) for name in before)
        assert (net(images()) - expected).abs().max() > 1e-4
    assert torch.equal(net(images()), expected)


def test_weights_are_a_function_of_the_global_seed():
    first, again, other = (fingerprint(make_net(seed=s).state_dict()) for s in (0, 0, 1))
    assert first == again != other


def test_norms_on_queries_and_keys_are_parameters():
    plain, normed = (set(make_net(f"model.qk_norm={x}").state_dict()) for x in ("false", "true"))
    assert normed - plain == {
        f"blocks.{i}.attn.{x}_norm.weight" for i in range(2) for x in ("q", "k")
    }
    assert plain < normed


def test_tokens_are_patches_alone():
    net = make_net("model.patch_size=2")
    # No class token: 4 x 4 patches of 8 x 8 pixels.
    assert net.pos_embed.shape == (1, 16, 16)
    assert net.cls_token is None


def test_prediction_is_of_the_mean_over_the_tokens():
    # Without positions, the mean over the tokens cannot see their order.
    net = make_net("model.patch_size=2").eval()
    nn.init.zeros_(net.pos_embed)
    x = images()
    shifted = x.roll((2, 4), dims=(2, 3))
    torch.testing.assert_close(net(shifted), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dropout_and_drop_path_act_in_training_only():
    for option in ("model.dropout=0.5", "model.drop_path=0.9"):
        net, x = loud(make_net(option)), images(batch=64)
        assert (net.train()(x) - net(x)).abs().max() > 1e-2
        assert torch.equal(net.eval()(x), net(x))


def test_patch_that_does_not_divide_the_image_is_refused_with_those_that_do():
    with pytest.raises(UserError) as error:
        make_net("model.patch_size=3")
    assert str(error.value) == (
        "model.patch_size=3 does not divide data.image_size=8; choose one of 1, 2, 4, 8"
    )
    with pytest.raises(UserError, match=r"model\.patch_size=16"):
        make_net("model.patch_size=16")


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match=r"model\.dim=16 must be a multiple of model\.heads=3"):
        make_net("model.heads=3")


def test_compiled_attention_is_refused_in_training():
    with pytest.raises(UserError, match="attention=asap is not trained"):
        build_vit(
            train_config(*TINY).model, {"name": "asap"}, image_size=8, channels=1, num_classes=10
        )


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.fixture
def trained(tmp_path):
    """Write a finished run of the tiny model with weights that no seed would give."""
    weights = {name: x + 0.25 for name, x in weights_of(make_net()).items()}
    return fake_run(tmp_path, *TINY, weights=weights)


def test_loaded_net_has_the_saved_weights_and_is_frozen(trained):
    net = load_net(trained)
    saved = load_tensors(trained.weights)
    assert net.state_dict().keys() == saved.keys()
    assert all(torch.equal(net.state_dict()[name], saved[name]) for name in saved)
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_damaged_weights_are_refused(trained, damage):
    whole = trained.weights.read_bytes()
    if damage == "missing":
        trained.weights.unlink()
    else:
        trained.weights.write_bytes(whole[:-10] if damage == "truncated" else b"\xff" * 100)
    with pytest.raises(UserError, match=r"teacher\.safetensors (is damaged|does not exist)"):
        load_net(trained)


@pytest.mark.parametrize("override", ["model.dim=32", "model.depth=3", "model.qk_norm=false"])
def test_weights_of_another_model_are_refused(trained, override):
    weights = weights_of(make_net(override))
    save_tensors(trained.weights, weights)
    manifest = trained.path / "manifest.json"
    write_json(manifest, read_json(manifest) | {"teacher_sha256": fingerprint(weights)})
    with pytest.raises(UserError, match=r"does not fit the model of .*config\.yaml"):
        load_net(trained)


def test_other_weights_of_the_same_model_are_refused(trained):
    weights = load_tensors(trained.weights)
    weights["head.bias"][0] += 1e-3
    save_tensors(trained.weights, weights)
    with pytest.raises(UserError, match=r"does not hold the weights that .*manifest\.json names"):
        load_net(trained)


def test_weights_without_a_fingerprint_in_the_manifest_are_refused(tmp_path):
    run = fake_run(tmp_path, *TINY, weights=weights_of(make_net()), teacher_sha256=None)
    with pytest.raises(UserError, match=r"teacher_sha256 is missing"):
        load_net(run)


@pytest.mark.slow
@pytest.mark.skipif(fused is None, reason="Triton is not installed")
def test_whole_model_with_fused_operators_compiles_without_a_graph_break():
    net, x = loud(make_net("attention.backend=triton")).eval(), images()
    maps = {
        path: AsapAttention(
            torch.randn(2, 3, 8), torch.randn(2, 3), torch.randn(2, 9), backend="triton"
        )
        for path in attention_layers(net)
    }
    # aot_eager traces forward and backward with the operators' fake implementations.
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
    with swapped(net, maps), torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))
