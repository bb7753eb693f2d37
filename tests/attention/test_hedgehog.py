"""Hedgehog's attention: its linear form against the whole matrix, and training it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import asap_exp
from asap_exp.attention import HedgehogAttention, MultiHeadAttention, build_attention
from asap_exp.core.errors import UserError
from asap_exp.timing.memory import peak_memory
from tests.attention.convertible import of_timm
from tests.attention.inputs import HEAD_DIM, HEADS, MASK, make_qkv, normal

DIM = HEADS * HEAD_DIM


def layer_of(dtype: torch.dtype = torch.float64) -> Any:
    """Return a layer whose feature maps are far from where they start."""
    layer = MultiHeadAttention(DIM, HEADS, attend=HedgehogAttention())
    with torch.no_grad():
        for seed, parameter in enumerate(layer.attend.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=20 + seed))
    return layer.to(dtype)


def doubles() -> list[Tensor]:
    return [x.double() for x in make_qkv()]


def by_hand(attention: Any, q: Tensor, k: Tensor) -> Tensor:
    """Return the plan of one sample `[H, N, M]`, entry by entry."""
    plan = torch.zeros(*q.shape[:2], k.shape[1], dtype=q.dtype)
    for h in range(len(q)):
        features = []
        for x, weight in ((q[h], attention.query_map[h]), (k[h], attention.key_map[h])):
            e = torch.stack([weight @ row for row in x]).exp()
            up, down = e, 1 / e
            features.append(torch.cat([up / up.sum(-1, True), down / down.sum(-1, True)], dim=-1))
        for i, of_query in enumerate(features[0]):
            row = torch.stack([of_query @ of_key for of_key in features[1]])
            plan[h, i] = row / row.sum()
    return plan


@pytest.mark.parametrize("keys", [7, 4])
def test_plan_is_that_of_the_formulas(keys: int) -> None:
    q, k, _ = doubles()
    attention = layer_of().attend
    plan = attention.plan(q, k[:, :, :keys])
    for b in range(len(q)):
        torch.testing.assert_close(plan[b], by_hand(attention, q[b], k[b, :, :keys]))


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_linear_form_and_its_gradients_are_those_of_the_whole_matrix(mask: Tensor | None) -> None:
    attention = layer_of().attend
    leaves = [x.requires_grad_() for x in doubles()]
    parameters = list(attention.parameters())
    q, k, v = leaves
    out = attention(q, k, v, key_padding_mask=mask)
    expected = attention.plan(q, k, key_padding_mask=mask) @ v
    torch.testing.assert_close(out, expected)
    found, wanted = (
        torch.autograd.grad(x.square().sum(), leaves + parameters) for x in (out, expected)
    )
    for gradient, other in zip(found, wanted, strict=True):
        assert gradient.any()
        torch.testing.assert_close(gradient, other)


def test_padding_equals_cutting() -> None:
    q, k, v = doubles()
    attention = layer_of().attend
    lengths = [7, 4, 6, 1]
    mask = torch.arange(7) >= torch.tensor(lengths)[:, None]
    out = attention(q, k, v, key_padding_mask=mask)
    for b, length in enumerate(lengths):
        cut = [x[b : b + 1, :, :length] for x in (q, k, v)]
        torch.testing.assert_close(out[b : b + 1, :, :length], attention(*cut))
        assert not out[b, :, length:].any()


def test_training_step_is_linear_in_the_tokens() -> None:
    """Four times the tokens take about four times the memory, and not a single plan."""
    attention = layer_of(torch.float32).attend

    def step_memory(tokens: int) -> float:
        q, k, v = (normal(1, HEADS, tokens, HEAD_DIM, seed=s).requires_grad_() for s in range(3))
        return peak_memory(lambda: attention(q, k, v).sum().backward(), q.device)

    small, large = step_memory(1024), step_memory(4096)
    assert large < 5 * small
    assert large < HEADS * 4096**2 * 4 / 2**20 / 8


def test_no_tensor_of_a_training_step_is_a_plan() -> None:
    """With 61 tokens, none of the 61 x 61 appears among all results of all operations."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for found in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(found, Tensor):
                    Sizes.largest = max(Sizes.largest, found.numel())
            return out

    tokens = 61
    q, k, v = (normal(1, HEADS, tokens, HEAD_DIM, seed=s).requires_grad_() for s in range(3))
    attention = layer_of(torch.float32).attend
    with Sizes():
        attention(q, k, v).sum().backward()
    assert 0 < Sizes.largest <= HEADS * tokens * 2 * HEAD_DIM < HEADS * tokens**2


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, True, False]])])
def test_gradients_are_those_of_finite_differences(mask: Tensor | None) -> None:
    attention = layer_of().attend
    names, weights = zip(*attention.named_parameters(), strict=True)
    q, k, v = (x[:1, :, :4].requires_grad_() for x in doubles())

    def output(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(attention, given, (q, k, v), {"key_padding_mask": mask})

    inputs = (q, k, v, *(w.detach().requires_grad_() for w in weights))
    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_huge_queries_and_keys_give_finite_outputs_and_gradients(size: float) -> None:
    """A feature of a one-hot map is never 0, nor is what a row is divided by."""
    q, k, v = make_qkv()
    leaves = [(size * q).requires_grad_(), (-size * k).requires_grad_(), v.requires_grad_()]
    attention = layer_of(torch.float32).attend
    out = attention(*leaves)
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out.square().sum(), leaves):
        assert gradient.isfinite().all()


def test_maps_start_as_the_identity_and_are_parameters_of_the_layer() -> None:
    layer = MultiHeadAttention(DIM, HEADS, attend=HedgehogAttention())
    eye = torch.eye(HEAD_DIM).expand(HEADS, -1, -1)
    assert set(layer.attend.state_dict()) == {"query_map", "key_map"}
    for parameter in layer.attend.parameters():
        torch.testing.assert_close(parameter.detach(), eye)
        assert parameter.requires_grad
    q, k, v = make_qkv()
    torch.testing.assert_close(layer.attend(q, k, v), HedgehogAttention()(q, k, v))


def test_every_parameter_of_a_layer_gets_a_gradient() -> None:
    layer = MultiHeadAttention(DIM, HEADS, attend=HedgehogAttention())
    layer(normal(2, 5, DIM)).square().sum().backward()
    for parameter in layer.attend.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_attention_of_other_heads_is_refused() -> None:
    attention = MultiHeadAttention(8, 2, attend=HedgehogAttention()).attend
    with pytest.raises(UserError, match=r"its query_map has shape \(2, 4, 4\), .* \(4, 2, 2\)"):
        MultiHeadAttention(8, 4, attend=attention)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_layer_compiles_without_a_graph_break(masked: bool) -> None:
    layer, x = layer_of(torch.float32), normal(4, 7, DIM)
    mask = MASK if masked else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = (f(x, key_padding_mask=mask) for f in (compiled, layer))
    torch.testing.assert_close(found, expected)


def test_converted_model_has_maps_in_every_layer() -> None:
    usual = of_timm("vit_tiny_patch16_224").model
    model = asap_exp.convert(usual, attention="hedgehog")
    maps = [x for name, x in model.named_parameters() if name.endswith("attend.query_map")]
    assert len(maps) > 1


def test_there_is_no_option() -> None:
    with pytest.raises(UserError, match=r"attention=hedgehog\. Its options: none"):
        build_attention({"name": "hedgehog", "features": 8})


def test_wrong_inputs_are_refused() -> None:
    q, k, v = make_qkv()
    with pytest.raises(ValueError, match="same head_dim: q has 3, k has 4"):
        HedgehogAttention()(q[..., :3], k, v)
    with pytest.raises(ValueError, match=r"key_padding_mask must have shape .* \(4, 7\)"):
        HedgehogAttention()(q, k, v, key_padding_mask=MASK[:, :5])
