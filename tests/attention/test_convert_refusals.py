"""What asap_exp.convert refuses, and with which words."""

from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention as TimmAttention
from torch import nn

import asap_exp
from asap_exp.attention import SinkhornAttention, SoftmaxAttention, attention_layers
from asap_exp.core.errors import UserError
from tests.attention.convertible import CASES, bert, of_timm, swin, transformers

SINKHORN: dict[str, Any] = {"attention": "sinkhorn", "num_iters": 4}


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return of_timm("vit_tiny_patch16_224").model


def small(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, num_classes=3, **options)


@pytest.mark.parametrize("name", ["swin", "beit"])
def test_position_bias_is_refused_for_sinkhorn_with_the_reason(name: str) -> None:
    model = CASES[name]().model
    with pytest.raises(UserError) as refused:
        asap_exp.convert(model, **SINKHORN)
    lines = str(refused.value).splitlines()
    kind, count = {"swin": ("WindowAttention", 3), "beit": ("Attention", 2)}[name]
    assert len(lines) == 3
    assert lines[1].count(".attn") == count
    assert f"({kind}): sinkhorn attention is not possible: it adds a learned relative" in lines[1]
    assert "the column step cancels a finite mask" in lines[1]
    layer = next(iter(attention_layers(asap_exp.convert(model)).values()))
    with pytest.raises(UserError, match=r"sinkhorn attention is not possible .* position bias"):
        layer.attend = SinkhornAttention()
    assert isinstance(layer.attend, SoftmaxAttention)


def test_bias_shared_by_all_layers_is_refused_when_it_comes() -> None:
    case = CASES["beit with a shared bias"]()
    model = asap_exp.convert(case.model, **SINKHORN)
    with pytest.raises(UserError, match="a mask or bias on the logits is not possible"):
        model(case.batches[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("swinv2_cr_tiny_224", "stages.0.blocks.0.attn", "cosines with a learned temperature"),
        ("swinv2_tiny_window8_256", "layers.0.blocks.0.attn", "cosines with a learned temp"),
        ("levit_128s", "stages.0.blocks.0.attn", "position bias in a way of its own"),
        ("xcit_nano_12_p16_224", "blocks.0.attn", "from channel to channel"),
        ("vit_relpos_small_patch16_224", "blocks.0.attn", "position bias in a way of its own"),
        ("mobilevitv2_050", "stages.2.1.transformer.0.attn", "linear attention"),
        ("maxvit_rmlp_pico_rw_256", "stages.0.blocks.0.attn_block.attn", "position bias in a way"),
        ("caformer_s18", "stages.2.blocks.0.token_mixer", "convert does not know this class"),
    ],
)
def test_attention_of_timm_that_is_not_supported_is_named(name: str, path: str, words: str) -> None:
    with torch.device("meta"):
        model = small(name)
    with pytest.raises(UserError, match=words) as refused:
        asap_exp.convert(model)
    assert path in str(refused.value)
    assert "cannot be converted" in str(refused.value)


def test_all_that_stands_in_the_way_is_in_one_error() -> None:
    model = small("vit_tiny_patch16_224", global_pool="map", class_token=False, depth=2)
    model.extra = nn.MultiheadAttention(8, 2, add_zero_attn=True)
    with pytest.raises(UserError) as refused:
        asap_exp.convert(model)
    first, *lines, last = str(refused.value).splitlines()
    assert first == "this VisionTransformer cannot be converted:"
    assert len(lines) == 2
    assert lines[0].startswith("  attn_pool (AttentionPoolLatent): it pools the tokens")
    assert lines[1].startswith("  extra (MultiheadAttention): add_zero_attn=True appends")
    assert last == "skip=['attn_pool', 'extra'] leaves them as they are"
    converted = asap_exp.convert(model, skip=["attn_pool", "extra"])
    assert list(attention_layers(converted)) == ["blocks.0.attn", "blocks.1.attn"]
    assert type(converted.extra) is nn.MultiheadAttention


def test_whole_parts_of_a_model_are_skipped(vit: nn.Module) -> None:
    converted = asap_exp.convert(vit, skip=["blocks.0"])
    assert list(attention_layers(converted)) == ["blocks.1.attn"]
    for wrong in (["block.0"], ["blocks.0.mlp"], ["blocks.1.attn", "blocks.10"]):
        with pytest.raises(UserError, match=r"there is no attention at .* blocks\.0\.attn, blo"):
            asap_exp.convert(vit, skip=wrong)


class Own(TimmAttention):
    """Attention that derives from one that is known."""

    def forward(self, x, attn_mask=None, is_causal=False):
        return 2 * super().forward(x, attn_mask, is_causal)


class StrangeAttention(nn.Module):
    """Attention of which nothing but its name is known."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)


class CausalSelfAttention(StrangeAttention):
    is_causal = True


def more_of(module: nn.Module, **parts: Any) -> nn.Module:
    for name, part in parts.items():
        setattr(module, name, part)
    return module


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        (Own(8, 2), r"\(Own\): it derives from timm\.layers\.attention\.Attention and may"),
        (
            StrangeAttention(),
            r"convert does not know this class; put asap_exp\.attention\.MultiHead",
        ),
        (CausalSelfAttention(), "it is causal, and the identity is the only"),
        (more_of(TimmAttention(8, 2), lora=nn.Linear(8, 2)), "does not know its lora"),
        (more_of(TimmAttention(8, 2), forward=print), "its forward was replaced"),
        (more_of(TimmAttention(8, 2), scale=0.1), r"scale 0\.1, not head_dim \*\* -0\.5 = 0\.5"),
    ],
)
def test_attention_that_computes_something_else_is_refused(
    attention: nn.Module, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        asap_exp.convert(nn.Sequential(attention))


@pytest.mark.parametrize("name", ["poolformer_s12", "resnet18", "mixer_s32_224"])
def test_model_without_attention_says_so(name: str) -> None:
    with torch.device("meta"):
        model = small(name)
    with pytest.raises(UserError, match=r"has nothing to convert: no module in it"):
        asap_exp.convert(model)


class WrittenOut(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_in_a_forward_is_refused_with_what_takes_its_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), WrittenOut())
    words = (
        r"forward of another module .* put asap_exp\.attention\.MultiHeadAttention .*own_model\.md"
    )
    with pytest.raises(UserError, match=rf"nothing to convert.*{words}, A layer of your own"):
        asap_exp.convert(model)
    with pytest.raises(UserError, match=rf"holds no MultiHeadAttention.*{words}"):
        asap_exp.compile(model, [torch.ones(2, 3, 4)] * 2)


def test_model_that_is_converted_already_says_so(vit: nn.Module) -> None:
    converted = asap_exp.convert(vit)
    with pytest.raises(UserError, match=r"are this project's already\. attention=\"sinkhorn\""):
        asap_exp.convert(converted)
    with pytest.raises(UserError, match="nothing to convert: no module in it, but those in skip"):
        asap_exp.convert(vit, skip=["blocks"])


def test_compiled_model_is_refused(vit: nn.Module) -> None:
    teacher = asap_exp.convert(vit, **SINKHORN)
    batches = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    compiled = asap_exp.compile(teacher, batches, steps=("ridge",), slices=2, candidates=2)
    with pytest.raises(UserError, match="is compiled; convert the model that it was made of"):
        asap_exp.convert(compiled, attention="softmax")


def test_softmax_layers_are_not_compiled(vit: nn.Module) -> None:
    converted = asap_exp.convert(vit)
    batches = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    advice = r'asap_exp\.convert\(model, attention="sinkhorn"'
    with pytest.raises(UserError, match=rf"only softmax attention.*{advice}"):
        asap_exp.compile(converted, batches)
    with pytest.raises(UserError, match=r"holds no MultiHeadAttention.*asap_exp\.convert"):
        asap_exp.compile(vit, batches)
    converted.blocks[0].attn.attend = SinkhornAttention(num_iters=3)
    with pytest.raises(UserError, match=rf"blocks\.1\.attn has softmax attention.*{advice}"):
        asap_exp.compile(converted, batches, layers=["blocks.1.attn"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "sinkhorm"}, r"attention=sinkhorm is not allowed\. Did you mean sinkhorn\?"),
        ({"attention": "asap"}, "is made by asap_exp.compile"),
        ({"attention": "softmax", "num_iters": 3}, "num_iters=3 is not an option of softmax"),
        (
            {"attention": "sinkhorn", "iters": 3},
            "iters=3 .* its options: num_iters, gradient_updates, implicit_steps, eps, backend",
        ),
        ({"attention": "sinkhorn", "num_iters": 0}, "num_iters must be .*got 0"),
        ({"num_iters": 20}, r'num_iters=20: options need attention=NAME.*attention="sinkhorn"'),
        ({"attention_dropout": 1.0}, r"attention_dropout=1\.0 is not allowed"),
        ({"attention_dropout": "0"}, r"attention_dropout='0' .* must be a number"),
        ({**SINKHORN, "attention_dropout": 0.1}, r"attention dropout of 0\.1"),
        ({"skip": "blocks.0"}, r"skip='blocks\.0' must be a list of paths"),
        ({"skip": [0]}, r"skip=\[0\] must be a list of paths"),
        ({"inplace": 1}, "inplace=1 has the wrong type"),
        ({"model": 3}, "model must be an nn.Module, got int"),
        ({"model": nn.MultiheadAttention(8, 2), "inplace": True}, "take what convert returns"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_done(
    vit: nn.Module, options: dict, words: str
) -> None:
    given = {"model": vit, **options}
    model = given.pop("model")
    with pytest.raises(UserError, match=words):
        asap_exp.convert(model, **given)
    assert type(vit.blocks[0].attn) is TimmAttention


@pytest.mark.slow
def test_graphs_are_refused(vit: nn.Module) -> None:
    compiled: Any = torch.compile(vit)
    with pytest.raises(UserError, match=r"convert\(model\._orig_mod\)"):
        asap_exp.convert(compiled)
    script: Any = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(UserError, match="TorchScript"):
        asap_exp.convert(script)


def test_masks_are_refused_by_a_layer_with_sinkhorn() -> None:
    layer = asap_exp.convert(TimmAttention(8, 2), **SINKHORN)
    x = torch.randn(1, 4, 8)
    with pytest.raises(UserError, match="the identity is the only doubly-stochastic plan"):
        layer(x, is_causal=True)
    with pytest.raises(UserError, match=r"mask or bias on the logits.*key_padding_mask"):
        layer(x, attn_mask=torch.ones(4, 4, dtype=torch.bool))


def test_attention_must_be_one(vit: nn.Module) -> None:
    layer = asap_exp.convert(vit).blocks[0].attn
    with pytest.raises(UserError, match=r"attend must be an attention.*got Softmax"):
        layer.attend = nn.Softmax(dim=-1)


def test_decoders_of_transformers_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(BertSelfAttention\): it is causal, and the identity"):
        asap_exp.convert(bert(is_decoder=True).model)
    hf = transformers("models.gpt2")
    model = hf.GPT2Model(hf.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"h\.0\.attn \(GPT2Attention\): it is causal"):
        asap_exp.convert(model)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_masks_of_transformers_that_are_more_than_padding(implementation: str) -> None:
    case = bert(implementation)
    ids = case.batches[0]["input_ids"]
    mask = torch.ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    given: Any = mask
    if implementation == "eager":
        given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = case.model(ids, attention_mask=given).last_hidden_state
        found = asap_exp.convert(case.model)(ids, attention_mask=given).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="an attention_mask that differs between queries"):
        asap_exp.convert(case.model, **SINKHORN)(ids, attention_mask=given)


def test_plans_of_transformers_are_given_out_in_eager_mode() -> None:
    case = bert("eager")
    with torch.no_grad():
        expected = case.model(**case.batches[0], output_attentions=True).attentions
        softmax, sinkhorn = (
            asap_exp.convert(case.model, **options)(**case.batches[0], output_attentions=True)
            for options in ({}, {"attention": "sinkhorn", "num_iters": 50})
        )
    for plan, other in zip(softmax.attentions, expected, strict=True):
        torch.testing.assert_close(plan, other, rtol=0, atol=1e-6)
    first = sinkhorn.attentions[0][0]  # a text without padding
    torch.testing.assert_close(first.sum(dim=1), torch.ones_like(first[:, 0]), rtol=0, atol=1e-3)


def test_swin_says_what_it_is_in_its_converted_form() -> None:
    converted = asap_exp.convert(swin().model)
    (kind,) = {type(layer).__name__ for layer in attention_layers(converted).values()}
    assert kind == "SwinAttention"
    assert "SoftmaxAttention" in repr(converted)
