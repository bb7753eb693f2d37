"""Properties of all inputs: hypothesis draws shapes, values, masks, orders and constants.

Values are seeded normal numbers, so that no two projections tie; ties would sort by position.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.inputs import (
    ATTENTIONS,
    OPERATORS,
    QUERY_KEY_OPERATORS,
    Inputs,
    assert_close64,
    make_inputs,
)

SIZES = {
    "batch": st.integers(1, 3),
    "heads": st.integers(1, 2),
    "head_dim": st.integers(1, 5),
    "value_dim": st.integers(1, 4),
    "slices": st.integers(1, 3),
    "seed": st.integers(0, 2**16),
}
SCALES = st.one_of(st.none(), st.floats(0.01, 2.0), st.floats(-2.0, -0.01))
OPTIONS = st.fixed_dictionaries({"eps": st.floats(0.3, 3.0), "scale": SCALES})
operators = st.sampled_from(sorted(QUERY_KEY_OPERATORS))
attentions = st.sampled_from(sorted(ATTENTIONS))


@st.composite
def inputs_of(draw: st.DrawFn, *, keys_may_differ: bool = False) -> Inputs:
    sizes: dict[str, Any] = {name: draw(strategy) for name, strategy in SIZES.items()}
    queries = draw(st.integers(1, 9))
    keys = draw(st.integers(1, 9)) if keys_may_differ else queries
    return make_inputs(queries=queries, keys=keys, **sizes)


@st.composite
def masks_of(draw: st.DrawFn, inputs: Inputs) -> Tensor:
    """Draw a mask, True = padded, with a valid token in every sample."""
    batch, _, tokens, _ = inputs.q.shape
    rows = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
    some_valid = rows.filter(lambda row: not all(row))
    return torch.tensor([draw(some_valid) for _ in range(batch)])


def permuted(x: Tensor, dims: tuple[int, ...], order: Tensor) -> Tensor:
    for dim in dims:
        x = x.index_select(dim, order)
    return x


@pytest.mark.slow
@given(st.data(), OPTIONS)
def test_a_constant_added_to_a_dual_changes_nothing(data, options):
    inputs = data.draw(inputs_of(keys_may_differ=True))
    mask = None
    if inputs.q.shape[2] == inputs.k.shape[2]:
        mask = data.draw(st.one_of(st.none(), masks_of(inputs)))
    each = st.floats(-50.0, 50.0)
    batch, heads = inputs.q.shape[:2]
    constants = [[data.draw(each) for _ in range(heads)] for _ in range(batch)]
    moved = inputs.row_dual + torch.tensor(constants, dtype=torch.float64)[:, :, None]
    options = {"key_padding_mask": mask, **options}
    for name in ("closure_attention", "attention_plan"):
        (found,), (expected,) = (
            OPERATORS[name](replace(inputs, row_dual=dual), **options)
            for dual in (moved, inputs.row_dual)
        )
        assert_close64(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@given(st.data(), operators, OPTIONS)
def test_permuted_tokens_permute_the_results(data, name, options):
    inputs, operator = data.draw(inputs_of()), QUERY_KEY_OPERATORS[name]
    mask = data.draw(masks_of(inputs))
    order = torch.tensor(data.draw(st.permutations(range(inputs.q.shape[2]))))
    results = operator(inputs, key_padding_mask=mask, **options)
    shuffled = operator(
        inputs.map_tokens(lambda x: x[:, :, order]), key_padding_mask=mask[:, order], **options
    )
    for found, result, dims in zip(shuffled, results, operator.token_dims, strict=True):
        assert_close64(found, permuted(result, dims, order), rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@given(st.data(), attentions, OPTIONS)
def test_permuted_keys_with_their_values_change_nothing(data, name, options):
    inputs = data.draw(inputs_of(keys_may_differ=True))
    order = torch.tensor(data.draw(st.permutations(range(inputs.k.shape[2]))))
    shuffled = replace(inputs, k=inputs.k[:, :, order], v=inputs.v[:, :, order])
    (expected,), (found,) = (ATTENTIONS[name](x, **options) for x in (inputs, shuffled))
    assert_close64(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@given(st.data(), operators, OPTIONS)
def test_padding_equals_cutting(data, name, options):
    inputs, operator = data.draw(inputs_of()), QUERY_KEY_OPERATORS[name]
    mask = data.draw(masks_of(inputs))
    results = operator(inputs, key_padding_mask=mask, **options)
    for sample, padded in enumerate(mask):
        (kept,) = (~padded).nonzero(as_tuple=True)
        alone = inputs.map_tokens(lambda x, b=sample, kept=kept: x[b : b + 1, :, kept])
        for result, cut, dims in zip(
            results, operator(alone, **options), operator.token_dims, strict=True
        ):
            of_sample = permuted(result[sample : sample + 1], dims, kept)
            assert_close64(of_sample, cut, rtol=1e-8, atol=1e-9)
