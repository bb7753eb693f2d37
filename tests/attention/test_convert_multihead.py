"""Conversion of torch.nn.MultiheadAttention, in all the ways in which it can be called."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asap_exp
from asap_exp.core.errors import UserError
from tests.attention.convertible import normal, randomised

ROWS, N, M, DIM, HEADS = 3, 5, 7, 8, 2
KEYS_ABSENT = torch.arange(M) >= torch.tensor([7, 3, 5])[:, None]
ABSENT = torch.arange(N) >= torch.tensor([5, 2, 4])[:, None]


def attention(**options: Any) -> nn.Module:
    return randomised(nn.MultiheadAttention(DIM, HEADS, **{"batch_first": True, **options}))


def sinkhorn(module: nn.Module, num_iters: int = 3) -> nn.Module:
    return asap_exp.convert(module, attention="sinkhorn", num_iters=num_iters)


def same(module: nn.Module, *inputs: Tensor, valid: Any = slice(None), **options: Any) -> None:
    """Asserts that output and weights of the converted module are those of torch."""
    converted = asap_exp.convert(module)
    for gradient in (True, False):  # torch has a path of its own without gradients
        with torch.set_grad_enabled(gradient):
            expected, weights = module(*inputs, **options)
            found, plan = converted(*inputs, **options)
        torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-5)
        assert (plan is None) == (weights is None)
        if weights is not None and isinstance(valid, slice):
            torch.testing.assert_close(plan, weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("batch_first", "need_weights", "average"),
    [(True, False, True), *itertools.product([True, False], [True], [True, False])],
)
def test_self_and_cross_attention(batch_first: bool, need_weights: bool, average: bool) -> None:
    module = attention(batch_first=batch_first)
    x, y, z = (normal(ROWS, length, DIM, seed=length) for length in (N, M, M))
    if not batch_first:
        x, y, z = (t.transpose(0, 1) for t in (x, y, z))
    options = {"need_weights": need_weights, "average_attn_weights": average}
    same(module, x, x, x, **options)
    same(module, x, y, z, **options)


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 5, "vdim": 3}, {"kdim": 5}])
def test_projections_of_every_kind(options: dict) -> None:
    module = attention(**options)
    key = normal(ROWS, M, options.get("kdim", DIM), seed=1)
    value = normal(ROWS, M, options.get("vdim", DIM), seed=2)
    same(module, normal(ROWS, N, DIM, seed=0), key, value)


@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_padding_of_keys(kind: str) -> None:
    module, x, y = attention(), normal(ROWS, N, DIM, seed=0), normal(ROWS, M, DIM, seed=1)

    def mask(absent: Tensor) -> Tensor:
        additive = torch.zeros(absent.shape).masked_fill(absent, float("-inf"))
        return absent if kind == "boolean" else additive

    same(module, x, y, y, key_padding_mask=mask(KEYS_ABSENT))
    same(module, x, x, x, key_padding_mask=mask(ABSENT), valid=~ABSENT)
    # Padded queries have no output; torch gives them one, which nothing should read.
    converted = sinkhorn(module)
    out = converted(x, x, x, key_padding_mask=mask(ABSENT), need_weights=False)[0]
    for row in range(ROWS):
        alone = x[row : row + 1, ~ABSENT[row]]
        torch.testing.assert_close(out[row, ~ABSENT[row]], converted(alone, alone, alone)[0][0])


@pytest.mark.parametrize("low", [float("-inf"), -1e9, torch.finfo(torch.float32).min])
def test_low_numbers_in_a_float_mask_are_padding_for_sinkhorn(low: float) -> None:
    converted, x = sinkhorn(attention()), normal(ROWS, N, DIM, seed=0)
    expected, plan = converted(x, x, x, key_padding_mask=ABSENT)
    mask = torch.zeros(ABSENT.shape).masked_fill(ABSENT, low)
    found, same_plan = converted(x, x, x, key_padding_mask=mask)
    assert torch.equal(found, expected)
    assert torch.equal(same_plan, plan)
    assert not plan[ABSENT].any()


@pytest.mark.parametrize("kind", ["boolean", "float", "per head"])
def test_masks_between_tokens_are_kept_for_softmax_alone(kind: str) -> None:
    module, x = attention(), normal(ROWS, N, DIM, seed=0)
    mask = {
        "boolean": torch.eye(N).flip(0).bool(),
        "float": normal(N, N, seed=3),
        "per head": normal(ROWS * HEADS, N, N, seed=3),
    }[kind]
    same(module, x, x, x, attn_mask=mask)
    if kind != "boolean":
        padding = torch.zeros(ABSENT.shape).masked_fill(ABSENT, float("-inf"))
        same(module, x, x, x, attn_mask=mask, key_padding_mask=padding, valid=~ABSENT)
    else:
        same(module, x, x, x, attn_mask=mask, key_padding_mask=ABSENT, valid=~ABSENT)
    with pytest.raises(UserError, match=r"mask or bias on the logits is not possible with sinkh"):
        sinkhorn(module)(x, x, x, attn_mask=mask)


def test_causal_attention_is_kept_for_softmax_alone() -> None:
    module, x = attention(), normal(ROWS, N, DIM, seed=0)
    mask = nn.Transformer.generate_square_subsequent_mask(N)
    same(module, x, x, x, attn_mask=mask, is_causal=True, need_weights=False)
    with pytest.raises(UserError, match=r"causal attention .* sinkhorn attention: .* the identity"):
        sinkhorn(module)(x, x, x, attn_mask=mask, is_causal=True)
    with pytest.raises(UserError, match="is_causal=True needs attn_mask"):
        asap_exp.convert(module)(x, x, x, is_causal=True)


def test_sequences_without_a_batch() -> None:
    module = attention()
    x, y = normal(N, DIM, seed=0), normal(M, DIM, seed=1)
    same(module, x, x, x)
    same(module, x, y, y, key_padding_mask=KEYS_ABSENT[1])
    same(module, x, y, y, attn_mask=normal(HEADS, N, M, seed=2))


def test_sinkhorn_attends_to_another_sequence_but_not_to_padded_keys() -> None:
    converted = sinkhorn(attention(), num_iters=50)
    x, y = normal(ROWS, N, DIM, seed=0), normal(ROWS, M, DIM, seed=1)
    _, plan = converted(x, y, y)
    torch.testing.assert_close(plan.sum(dim=2), torch.ones(ROWS, N))
    torch.testing.assert_close(plan.sum(dim=1), torch.full((ROWS, M), N / M), rtol=0, atol=1e-3)
    for keys in (y, x.clone()):  # the second has as many tokens as there are queries
        absent = torch.zeros(keys.shape[:2], dtype=torch.bool)
        with pytest.raises(UserError, match="from one sequence to another"):
            converted(x, keys, keys, key_padding_mask=absent)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_keys_that_belong_to_no_token_are_refused(option: str) -> None:
    with pytest.raises(
        UserError, match=rf"the model itself \(MultiheadAttention\): {option}=True appends a key"
    ):
        asap_exp.convert(attention(**{option: True}))


def test_nested_tensors_are_for_self_attention_alone() -> None:
    module = attention()
    x = torch._nested_tensor_from_mask(normal(ROWS, N, DIM, seed=0), ~ABSENT)
    with torch.no_grad():
        expected, weights = module(x, x, x)
    found, plan = asap_exp.convert(module)(x, x, x)
    torch.testing.assert_close(found.to_padded_tensor(0.0), expected.to_padded_tensor(0.0))
    torch.testing.assert_close(plan[~ABSENT], weights[~ABSENT])
    with pytest.raises(UserError, match="a nested tensor is taken for self-attention"):
        asap_exp.convert(module)(x, x.clone(), x)


def test_transformer_with_encoder_and_decoder() -> None:
    options = {"dropout": 0.0, "batch_first": True, "dim_feedforward": 16}
    model = randomised(nn.Transformer(DIM, HEADS, 1, 1, **options))
    source, target = normal(ROWS, M, DIM, seed=0), normal(ROWS, N, DIM, seed=1)
    masks = {
        "tgt_mask": model.generate_square_subsequent_mask(N),
        "src_key_padding_mask": KEYS_ABSENT,
        "memory_key_padding_mask": KEYS_ABSENT,
    }
    converted = asap_exp.convert(model)
    with torch.no_grad():
        expected = model(source, target, **masks)
        torch.testing.assert_close(converted(source, target, **masks), expected, rtol=0, atol=1e-5)
        encoder_alone = asap_exp.convert(model, attention="sinkhorn", num_iters=3, skip=["decoder"])
        assert encoder_alone(source, target, **masks).isfinite().all()
        with pytest.raises(UserError, match="causal attention"):
            sinkhorn(model)(source, target, **masks)
