"""The text encoder: padding has no effect, for every attention, in training and evaluation."""

import dataclasses

import pytest
import torch
from torch import Tensor

from asap_exp.attention import ATTENTIONS, AsapAttention, attention_layers, swap_attention, swapped
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.tensors import fingerprint
from asap_exp.data.catalog import TEXT_DATASETS
from asap_exp.data.raw_texts import load_texts
from asap_exp.data.text_loader import TextLoader
from asap_exp.data.tokenizer import encode, train_tokenizer
from asap_exp.data.tokens import CLS, PAD, SPECIAL_TOKENS, TokenBatch, truncated
from asap_exp.models import TextEncoder, build_net, compile_blocks
from asap_exp.models.text import sinusoids
from asap_exp.ops.backend import fused
from tests.composed import composed
from tests.ops.cases import pairs_of
from tests.stages import TINY_TEXT

LENGTHS = (9, 1, 5, 2)
VOCAB = 400
TRAINABLE = sorted(name for name, cls in ATTENTIONS.items() if not cls.needs_calibration)
POOLING = ("mean", "max", "cls")


def new_net(*overrides: str, attention: str = "sinkhorn", seed: int = 0) -> TextEncoder:
    """Return an encoder without dropout, with new weights."""
    quiet = ("model.dropout=0", "model.drop_path=0", f"attention={attention}")
    torch.manual_seed(seed)
    net = build_net(composed("train", ["task=agnews", *TINY_TEXT, *quiet, *overrides], TrainConfig))
    assert isinstance(net, TextEncoder)
    return net


def make_net(*overrides: str, attention: str = "sinkhorn", seed: int = 0) -> TextEncoder:
    """Return an encoder whose weights are large enough that every layer matters."""
    names = {"asap": "sinkhorn"}
    net = new_net(*overrides, attention=names.get(attention, attention), seed=seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    if attention == "asap":
        maps = {
            path: AsapAttention(torch.randn(2, 3, 8), torch.randn(2, 3), torch.randn(2, 9))
            for path in attention_layers(net)
        }
        swap_attention(net, maps)
    return net


def make_batch(length: int = 12) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIAL_TOKENS, VOCAB, (len(LENGTHS), length), generator=generator)
    ids[:, 0] = CLS
    mask = torch.arange(length) >= torch.tensor(LENGTHS)[:, None]
    return TokenBatch(ids.masked_fill(mask, PAD), mask)


def gradients(net: TextEncoder, outputs: list[Tensor]) -> dict[str, Tensor]:
    net.zero_grad()
    sum(out.square().sum() for out in outputs).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pairs_of(attention=[*TRAINABLE, "asap"], pooling=POOLING, training=[False, True])
def test_padded_batch_equals_its_texts_one_by_one(attention, pooling, training):
    net = make_net(f"model.pooling={pooling}", attention=attention).train(training)
    batch = make_batch()
    together = net(batch)
    alone = [net(TokenBatch(batch.ids[i : i + 1, :n])) for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1:]).abs().max() > 1e-2, "texts are told apart"
    if training:
        expected, found = gradients(net, alone), gradients(net, [net(batch)])
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("attention", [*TRAINABLE, "asap"])
def test_padded_ids_change_nothing(attention):
    net, batch = make_net(attention=attention), make_batch()
    noise = torch.randint(SPECIAL_TOKENS, VOCAB, batch.ids.shape)
    changed = dataclasses.replace(batch, ids=torch.where(batch.key_padding_mask, noise, batch.ids))
    before, after = net(batch), net(changed)
    assert torch.equal(before, after)
    expected, found = gradients(net, [net(batch)]), gradients(net, [net(changed)])
    for name, gradient in found.items():
        assert gradient.isfinite().all()
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("attention", [*TRAINABLE, "asap"])
def test_text_of_one_token_has_finite_gradients(attention):
    net = make_net(attention=attention)
    out = net(TokenBatch(torch.full((1, 1), CLS)))
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(net, [out]).values())


def mlm_net(*overrides: str) -> TextEncoder:
    return make_net("data.objective=mlm", "data.mask_share=0.15", *overrides)


def test_masked_language_model_predicts_at_the_places_it_is_given():
    net, batch = mlm_net(), make_batch()
    positions = torch.tensor([3, 0, 12, 24 + 4])
    logits = net(dataclasses.replace(batch, positions=positions))
    assert logits.shape == (4, VOCAB)
    reversed_ = net(dataclasses.replace(batch, positions=positions.flip(0)))
    assert torch.equal(logits.flip(0), reversed_)
    assert net(dataclasses.replace(batch, positions=positions[:0])).shape == (0, VOCAB)
    alone = net(TokenBatch(batch.ids[:1, :9], positions=torch.tensor([3, 0])))
    torch.testing.assert_close(logits[:2], alone, rtol=1e-4, atol=1e-4)


def test_masked_language_model_has_one_matrix_for_both_ends():
    net = mlm_net()
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert shapes.count((VOCAB, 16)) == 1
    batch = dataclasses.replace(make_batch(), positions=torch.tensor([3]))
    before = net(batch)
    with torch.no_grad():
        net.embed.weight[7] += 1.0  # a token that is not in the text
    assert 7 not in batch.ids
    changed = (net(batch) != before).nonzero()[:, 1].tolist()
    assert changed == [7]


@pytest.mark.slow
def test_encoder_is_the_same_below_either_head():
    classes, masked = make_net().state_dict(), mlm_net().state_dict()
    shared = {name: tuple(t.shape) for name, t in classes.items() if not name.startswith("head.")}
    assert shared == {
        name: tuple(t.shape) for name, t in masked.items() if not name.startswith("head.")
    }


@pytest.mark.slow
def test_order_of_the_words_matters_through_the_positions_alone():
    batch = make_batch()
    shuffled = dataclasses.replace(batch, ids=batch.ids.clone())
    shuffled.ids[0, 1:9] = batch.ids[0, 1:9].flip(0)
    for kind in ("learned", "sinusoidal", "frozen_noise"):
        net = make_net(f"model.positions={kind}")
        assert (net(batch)[0] - net(shuffled)[0]).abs().max() > 1e-3
        net.positions.table.data.zero_()
        torch.testing.assert_close(net(batch)[0], net(shuffled)[0], rtol=1e-4, atol=1e-4)


def test_what_trains_of_the_positions_and_what_is_saved():
    assert "positions.table" in dict(make_net().named_parameters())
    for kind, saved in (("sinusoidal", False), ("frozen_noise", True)):
        net = make_net(f"model.positions={kind}")
        assert "positions.table" not in dict(net.named_parameters())
        assert ("positions.table" in net.state_dict()) == saved
    noise = make_net("model.positions=frozen_noise").positions.table
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_sinusoids_are_those_of_the_paper():
    table = sinusoids(5, 6)
    for place in range(5):
        for i in range(3):
            angle = torch.tensor(place / 10_000 ** (2 * i / 6))
            torch.testing.assert_close(table[place, 2 * i], angle.sin())
            torch.testing.assert_close(table[place, 2 * i + 1], angle.cos())
    assert sinusoids(4, 5).shape == (4, 5)


@pytest.mark.slow
def test_max_over_padded_places_sees_them():
    batch = make_batch()
    longer = TokenBatch(
        torch.nn.functional.pad(batch.ids, (0, 8)),
        torch.nn.functional.pad(batch.key_padding_mask, (0, 8), value=True),
    )
    for pooling, same in (("max", True), ("max_padded", False)):
        net = make_net(f"model.pooling={pooling}")
        assert torch.allclose(net(batch), net(longer), rtol=1e-4, atol=1e-4) == same


def test_norm_may_stand_after_the_sum():
    net = make_net("model.norm=post")
    assert isinstance(net.norm, torch.nn.Identity)
    block, x = net.blocks[0], torch.randn(2, 5, 16)
    with torch.no_grad():
        block.norm2.weight.fill_(1.0)
        block.norm2.bias.zero_()
    out = block(x, None)
    torch.testing.assert_close(out.mean(dim=-1), torch.zeros(2, 5), rtol=0, atol=1e-5)


def test_softmax_in_the_head_gives_probabilities():
    out = make_net("model.head_softmax=true")(make_batch())
    torch.testing.assert_close(out.sum(dim=-1), torch.ones(len(LENGTHS)))


@pytest.mark.parametrize("name", TRAINABLE)
def test_weights_are_the_same_whatever_the_attention(name):
    weights = new_net(attention=name).state_dict()
    shared = {key: tensor for key, tensor in weights.items() if ".attend." not in key}
    assert fingerprint(shared) == fingerprint(new_net().state_dict())


@pytest.mark.slow
def test_causal_models_are_refused_with_the_reason():
    with pytest.raises(UserError) as error:
        make_net("model.causal=true")
    assert "Causal models have no doubly-stochastic plan with uniform marginals" in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(fused is None, reason="Triton is not installed")
@pytest.mark.parametrize("masked", [False, True])
def test_model_with_fused_operators_compiles_without_a_graph_break(masked):
    net = make_net("attention.backend=triton").eval()
    batch = make_batch() if masked else TokenBatch(make_batch().ids)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), net(batch), rtol=1e-4, atol=1e-4)


def real_texts() -> TokenBatch:
    """Return four lines of WikiText-2 of different lengths, short enough for the interpreter."""
    lines = load_texts(TEXT_DATASETS["wikitext2_excerpt"], "train", None, None)
    tokenizer = train_tokenizer(lines.texts, VOCAB, lowercase=False)
    chosen = ["", *(line for line in lines.texts if len(line) > 60)][:4]
    encoded = encode(tokenizer, [c[: 25 * i] for i, c in enumerate(chosen)], [0] * 4, "real")
    texts = truncated(encoded, 24, "head")
    loader = TextLoader(texts, 4, max_length=24, length_multiple=8, max_tokens=None)
    (batch, _), *more = list(loader)
    assert not more
    assert batch.key_padding_mask is not None
    return batch


@pytest.mark.slow
@pytest.mark.skipif(fused is None, reason="Triton is not installed")
def test_fused_operators_give_what_the_reference_gives_on_a_padded_batch_of_real_text():
    """Forward, backward and the compiled map work on texts of different lengths, one empty."""
    batch = real_texts()
    valid = (~batch.key_padding_mask).sum(dim=1).tolist()
    assert valid[0] == 1 < min(valid[1:])
    assert len(set(valid)) == 4
    results = {}
    for backend in ("reference", "triton"):
        net = make_net(f"attention.backend={backend}")
        out = net(batch)
        torch.manual_seed(0)
        maps = {
            path: AsapAttention(
                torch.randn(2, 3, 8), torch.randn(2, 3), torch.randn(2, 9), backend=backend
            )
            for path in attention_layers(net)
        }
        with swapped(net, maps), torch.no_grad():
            asap = net(batch)
        results[backend] = (out.detach(), asap, gradients(net, [out]))
    for place in (0, 1):
        torch.testing.assert_close(
            results["triton"][place], results["reference"][place], rtol=1e-3, atol=1e-3
        )
    for name, gradient in results["triton"][2].items():
        expected = results["reference"][2][name]
        assert (gradient - expected).norm() <= 1e-3 * expected.norm() + 1e-5, name


@pytest.mark.slow
def test_blocks_compile_once_with_padding_and_once_without():
    torch._dynamo.reset()
    net, compilations = make_net().eval(), []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph

    compile_blocks(net, backend=backend, dynamic=True)
    with torch.no_grad():
        for rows, length in ((2, 8), (2, 16), (3, 16), (4, 40), (3, 24)):
            ids = torch.full((rows, length), CLS)
            mask = torch.zeros(rows, length, dtype=torch.bool)
            mask[0, 5:] = True
            net(TokenBatch(ids, mask))
            net(TokenBatch(ids, None))
    assert len(compilations) == 2, "whatever the length, and once for both blocks"
