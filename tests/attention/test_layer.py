"""The attention layer, recording of its inputs, and swapping of its attention."""

from inspect import signature

import pytest
import timm
import torch
from timm.layers import Attention as TimmAttention
from timm.layers import RmsNorm
from torch import nn

from asap_exp.attention import (
    MultiHeadAttention,
    SinkhornAttention,
    SoftmaxAttention,
    UniformAttention,
    attention_layers,
    record_inputs,
    swap_attention,
    swapped,
)
from asap_exp.core.errors import UserError
from tests.attention.inputs import MASK, assert_close, make_asap, normal

DIM, HEADS = 8, 2


def make_layer(**options) -> MultiHeadAttention:
    torch.manual_seed(0)
    layer = MultiHeadAttention(DIM, HEADS, **options)
    for parameter in layer.parameters():
        # Norm weights start at one, which would hide whether they are used.
        nn.init.normal_(parameter)
    return layer


def plain_layer(layer: MultiHeadAttention, x: torch.Tensor, qk_norm: bool) -> torch.Tensor:
    """Compute softmax attention with a loop over samples and heads."""
    width = DIM // HEADS
    outs = torch.empty_like(x)
    for b, tokens in enumerate(x):
        qkv = tokens @ layer.qkv.weight.T + layer.qkv.bias
        heads = []
        for h in range(HEADS):
            q, k, v = (
                qkv[:, part * DIM + h * width : part * DIM + (h + 1) * width] for part in range(3)
            )
            if qk_norm:
                q = q / q.square().mean(dim=-1, keepdim=True).sqrt() * layer.q_norm.weight
                k = k / k.square().mean(dim=-1, keepdim=True).sqrt() * layer.k_norm.weight
            heads.append((q @ k.T / width**0.5).softmax(dim=-1) @ v)
        outs[b] = torch.cat(heads, dim=-1) @ layer.proj.weight.T + layer.proj.bias
    return outs


@pytest.mark.parametrize("qk_norm", [False, True])
def test_layer_against_a_plain_computation(qk_norm):
    layer, x = make_layer(qk_norm=qk_norm), normal(3, 5, DIM)
    assert isinstance(layer.attend, SoftmaxAttention), "the default"
    assert_close(layer(x), plain_layer(layer, x, qk_norm))


def test_norms_are_there_only_where_asked_for():
    assert not [name for name in make_layer().state_dict() if "norm" in name]
    normed = make_layer(qk_norm=True)
    assert normed.q_norm.weight.shape == normed.k_norm.weight.shape == (DIM // HEADS,)


def test_biases_are_optional():
    layer = make_layer(qkv_bias=False, proj_bias=False)
    assert set(layer.state_dict()) == {"qkv.weight", "proj.weight"}


def test_dropout_acts_on_the_output_in_training_only():
    layer, x = make_layer(proj_drop=0.5), normal(3, 5, DIM)
    assert (layer.train()(x) == 0).any()
    assert not (layer.eval()(x) == 0).any()


def test_padding_reaches_the_attention():
    layer, x = make_layer(attend=SinkhornAttention(num_iters=3)), normal(len(MASK), 7, DIM)
    out = layer(x, key_padding_mask=MASK)
    for b, valid in enumerate(~MASK):
        assert_close(out[b : b + 1, valid], layer(x[b : b + 1, valid]))
    # A padded token's output is the projection of zero.
    assert_close(out[MASK], layer.proj.bias.expand(int(MASK.sum()), DIM))


MASKS = {
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.eye(5).flip(0) == 0},
    "additive": {"attn_mask": normal(2, 1, 5, 5, seed=7)[:1]},
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_mean_what_they_do_in_timm_with_softmax_alone(name):
    arguments = MASKS[name]
    if name == "causal" and "is_causal" not in signature(TimmAttention.forward).parameters:
        pytest.skip("this timm's attention has no is_causal yet")
    layer, x = make_layer(), normal(3, 5, DIM)
    own = TimmAttention(DIM, HEADS, qkv_bias=True)
    own.load_state_dict(layer.state_dict())
    assert_close(layer(x, **arguments), own(x, **arguments))
    assert isinstance(layer.attend, SoftmaxAttention)
    plan = layer.attend.plan(*qk(layer, x), bias=bias_of(**arguments))
    v = layer.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS))[..., 2, :, :].transpose(1, 2)
    assert_close(layer.proj((plan @ v).transpose(1, 2).flatten(2)), own(x, **arguments))
    layer.attend = SinkhornAttention()
    words = "the identity is" if name == "causal" else "a mask or bias on the logits is not"
    with pytest.raises(UserError, match=words):
        layer(x, **arguments)


def qk(layer, x):
    q, k, _ = layer.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS)).unbind(-3)
    return q.transpose(1, 2), k.transpose(1, 2)


def bias_of(attn_mask=None, is_causal=False):
    return torch.ones(5, 5, dtype=torch.bool).tril() if is_causal else attn_mask


def test_masks_and_padding_hold_together_for_softmax():
    """A padded key has no weight, whatever is added to its logits."""
    layer, x = make_layer(), normal(len(MASK), 7, DIM)
    for mask in (torch.zeros(7, 7), torch.ones(7, 7, dtype=torch.bool)):
        with_both = layer(x, mask, key_padding_mask=MASK)
        assert_close(with_both, layer(x, key_padding_mask=MASK))


def test_heads_must_divide_the_width():
    with pytest.raises(
        UserError, match=r"num_heads=3 must be at least 1, and dim=8 a multiple of it"
    ):
        MultiHeadAttention(8, 3)


def test_attention_gets_one_dtype_under_autocast():
    layer, x = make_layer(qk_norm=True), normal(3, 5, DIM)
    net = nn.Sequential(layer)
    with torch.autocast("cpu", torch.bfloat16), record_inputs(net) as recorded:
        net(x)
    (inputs,) = recorded["0"]
    assert {t.dtype for t in inputs[:3]} == {torch.bfloat16}


class Stack(nn.Module):
    """Network of three layers, one nested deeper, that share one padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first = make_layer(attend=SinkhornAttention(num_iters=2))
        self.blocks = nn.ModuleList([make_layer(), nn.ModuleDict({"inner": make_layer()})])

    def forward(self, x, key_padding_mask=None):
        for layer in attention_layers(self).values():
            x = layer(x, key_padding_mask=key_padding_mask)
        return x


PATHS = ["first", "blocks.0", "blocks.1.inner"]


def attentions(net: nn.Module) -> list[nn.Module]:
    return [layer.attend for layer in attention_layers(net).values()]


def test_layers_by_their_paths_in_order():
    net = Stack()
    assert list(attention_layers(net)) == PATHS
    assert attention_layers(net)["blocks.0"] is net.blocks[0]


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_recorded_inputs_are_what_the_attention_got(mask):
    net, x = Stack(), normal(len(MASK), 7, DIM)
    with record_inputs(net) as recorded:
        out = net(x, mask)
    assert list(recorded) == PATHS
    for path in PATHS:
        layer, (inputs,) = attention_layers(net)[path], recorded[path]
        assert inputs.key_padding_mask is mask
        assert inputs.q.shape == inputs.k.shape == inputs.v.shape == (len(MASK), HEADS, 7, 4)
        assert not inputs.q.requires_grad
        attended = layer.attend(*inputs[:3], key_padding_mask=inputs.key_padding_mask)
        result = layer.proj(attended.transpose(1, 2).flatten(2))
    assert_close(result, out)


def test_nothing_is_recorded_once_closed():
    net, x = Stack(), normal(1, 7, DIM)
    with record_inputs(net) as recorded:
        assert recorded == {}
    net(x)
    assert recorded == {}
    with pytest.raises(RuntimeError, match="stop"), record_inputs(net) as recorded:
        raise RuntimeError("stop")
    net(x)
    assert recorded == {}


def test_later_passes_are_recorded_too():
    net = Stack()
    with record_inputs(net) as recorded:
        net(normal(1, 7, DIM))
        net(normal(2, 5, DIM))
    assert [call.q.shape for call in recorded["first"]] == [(1, HEADS, 7, 4), (2, HEADS, 5, 4)]


class Loop(nn.Module):
    """Network that calls one layer three times, each time on the output of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.other = make_layer(), make_layer(attend=SinkhornAttention(num_iters=2))

    def forward(self, x):
        for _ in range(3):
            x = self.tied(x + self.other(x))
        return x


def test_every_call_of_a_layer_is_recorded_in_order():
    net, x = Loop(), normal(2, 7, DIM)
    with record_inputs(net) as recorded:
        net(x)
    assert list(recorded) == ["other", "tied"]
    for calls in recorded.values():
        assert len(calls) == 3
    for inputs in recorded["tied"]:
        x = x + net.other(x)
        q = net.tied.qkv(x)[..., :DIM].unflatten(-1, (HEADS, 4)).transpose(1, 2)
        torch.testing.assert_close(inputs.q, q.detach())
        x = net.tied(x)


def test_layers_that_share_one_attention_are_told_apart():
    net, x = Stack(), normal(2, 7, DIM)
    with record_inputs(net) as own:
        net(x)
    shared = net.blocks[0].attend
    swap_attention(net, {"blocks.1.inner": shared})
    with record_inputs(net) as recorded:
        net(x)
    assert list(recorded) == PATHS
    for path in PATHS:
        assert len(recorded[path]) == 1
        assert torch.equal(recorded[path][0].q, own[path][0].q)


def test_attention_called_past_its_layer_is_recorded_as_the_layers():
    layer = make_layer()
    q, k, v = (normal(2, HEADS, 5, 4, seed=seed) for seed in range(3))
    with record_inputs(nn.ModuleList([layer])) as recorded:
        layer.attend(q, k, v)
    assert list(recorded) == ["0"]
    assert torch.equal(recorded["0"][0].k, k)


def test_swap_changes_the_attention_and_nothing_else():
    net, x = Stack(), normal(2, 7, DIM)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    untouched = attentions(net)
    expected = net(x)
    uniform, asap = UniformAttention(), make_asap()
    swap_attention(net, {"blocks.0": uniform, "blocks.1.inner": asap})
    assert attentions(net) == [untouched[0], uniform, asap]
    after = net.state_dict()
    assert {n for n in after if n not in before} == {
        f"blocks.1.inner.attend.{name}" for name in asap.state_dict()
    }
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (net(x) - expected).abs().max() > 1e-3


def test_swapped_restores():
    net, x = Stack(), normal(2, 7, DIM)
    before, expected = attentions(net), net(x)
    uniform = UniformAttention()
    with swapped(net, {"blocks.0": uniform}) as changed:
        assert changed is net
        assert attentions(net) == [before[0], uniform, before[2]]
    assert attentions(net) == before
    assert torch.equal(net(x), expected)


def fail_while_swapped(net, replacements):
    before = attentions(net)
    with swapped(net, replacements):
        assert attentions(net) != before
        raise RuntimeError("stop")


def test_swapped_restores_after_an_error():
    net = Stack()
    before = attentions(net)
    with pytest.raises(RuntimeError, match="stop"):
        fail_while_swapped(net, dict.fromkeys(PATHS, UniformAttention()))
    assert attentions(net) == before


@pytest.mark.parametrize("swap", [swap_attention, fail_while_swapped], ids=["for good", "a while"])
def test_unknown_path_is_refused_with_those_there_are_and_nothing_is_swapped(swap):
    net = Stack()
    before = attentions(net)
    replacements = {"first": UniformAttention(), "blocks.7": UniformAttention()}
    with pytest.raises(UserError, match=r"no attention layer at blocks\.7.*first, blocks\.0"):
        swap(net, replacements)
    assert attentions(net) == before


@pytest.mark.parametrize("attend", [SoftmaxAttention(), SinkhornAttention(), make_asap()])
def test_layer_on_the_meta_device_gives_the_shape(attend):
    layer = make_layer(qk_norm=True).to("meta")
    layer.attend = attend.to("meta")
    mask = MASK.to("meta")
    out = layer(torch.empty(len(MASK), 7, DIM, device="meta"), key_padding_mask=mask)
    assert (out.shape, out.is_meta) == ((len(MASK), 7, DIM), True)


def timm_vit(**options) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2}
    return timm.create_model("vit_tiny_patch16_224", **shape, num_classes=3, **options).eval()


TIMM_OPTIONS = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "qk_norm of another kind": {"qk_norm": True, "norm_layer": RmsNorm},
    "scale_attn_norm": {"scale_attn_norm": True},
    "both norms": {"qk_norm": True, "scale_attn_norm": True, "proj_bias": False},
    "no bias": {"qkv_bias": False},
    "dropouts of other places": {"proj_drop_rate": 0.2, "drop_path_rate": 0.1, "attn_drop_rate": 0},
    "float64": {"dtype": torch.float64, "qk_norm": True},
}


@pytest.mark.parametrize("options", TIMM_OPTIONS.values(), ids=TIMM_OPTIONS)
def test_timms_weights_load_and_give_timms_output(options):
    own = timm_vit(**options)
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = timm_vit(attn_layer=MultiHeadAttention, **options)
    ours.load_state_dict(own.state_dict())
    x = normal(3, 3, 8, 8).to(options.get("dtype"))
    assert_close(ours(x), own(x))
    drops = [[m.p for m in net.modules() if isinstance(m, nn.Dropout)] for net in (own, ours)]
    assert sum(drops[0]) == sum(drops[1])


@pytest.mark.parametrize(
    "options",
    [
        {"attn_head_dim": 3},
        {"dim_out": 5},
        {"gated": True, "qkv_bias": True},
        {"gated": True, "scale_norm": True, "norm_layer": nn.LayerNorm, "attn_head_dim": 2},
    ],
)
def test_keywords_of_timms_attention_mean_the_same(options):
    if "gated" in options and "gated" not in signature(TimmAttention).parameters:
        pytest.skip("this timm has no gate yet")
    own = TimmAttention(DIM, HEADS, **options)
    ours = MultiHeadAttention(DIM, HEADS, **{"qkv_bias": False, **options})
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(own.state_dict())
    x = normal(3, 5, DIM)
    assert_close(ours(x), own(x))


def test_bfloat16_model_runs_in_bfloat16():
    net = timm_vit(attn_layer=MultiHeadAttention, dtype=torch.bfloat16, qk_norm=True)
    for layer in attention_layers(net).values():
        layer.attend = SinkhornAttention(num_iters=3)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert net(normal(2, 3, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_device_is_that_of_every_parameter():
    options = {"qk_norm": True, "scale_attn_norm": True}
    net = timm_vit(attn_layer=MultiHeadAttention, device="meta", **options)
    assert all(parameter.is_meta for parameter in net.parameters())
    assert net(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 3)
    layer = MultiHeadAttention(DIM, HEADS, gated=True, device="meta")
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_dropout_of_attention_weights_is_for_softmax_alone():
    own, ours = (
        timm_vit(attn_drop_rate=0.5, **given) for given in ({}, {"attn_layer": MultiHeadAttention})
    )
    ours.load_state_dict(own.state_dict())
    x = normal(3, 3, 8, 8)
    outs = []
    for net in (own.train(), ours.train()):
        torch.manual_seed(0)
        outs.append(net(x))
    assert_close(*outs)
    assert not torch.allclose(ours(x), outs[1])
    for layer in attention_layers(ours).values():
        with pytest.raises(
            UserError, match=r"attention dropout of 0\.5, and dropping .* marginals"
        ):
            layer.attend = SinkhornAttention()
        layer.attention_dropout_rate = 0
        layer.attend = SinkhornAttention()
        layer.attention_dropout_rate = 0.5  # too late
    with pytest.raises(UserError, match=r"attention dropout of 0\.5 is not possible with sinkhorn"):
        ours(x)


@pytest.mark.parametrize("given", [{"fused_attn": False}, {"rope": 1}, {"num_kv_heads": 1}])
def test_unknown_keywords_are_refused_by_name(given):
    (name,) = given
    with pytest.raises(
        UserError, match=rf"does not know {name}=.*It accepts dim, num_heads, .*gated"
    ):
        MultiHeadAttention(DIM, HEADS, **given)


def test_norms_by_default_are_rms_norms():
    layer = MultiHeadAttention(DIM, HEADS, qk_norm=True, scale_norm=True)
    assert {type(norm) for norm in (layer.q_norm, layer.k_norm, layer.norm)} == {nn.RMSNorm}
