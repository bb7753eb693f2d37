"""Padding has no mass: padded batches equal unpadded samples, whatever the padding contains."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.ops.inputs import (
    OPERATORS,
    PER_TOKEN,
    Inputs,
    assert_close64,
    make_cotangents,
    make_inputs,
)

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)

# Nothing padded; the end; positions in between; all but one.
MASK = torch.tensor(
    [
        [False, False, False, False, False, False, False],
        [False, False, False, False, True, True, True],
        [True, False, False, True, False, True, False],
        [True, True, True, True, False, True, True],
    ]
)
# The same, with a sample in the middle that has no valid token.
MASK_WITH_EMPTY = torch.cat([MASK[:2], torch.ones(1, 7, dtype=torch.bool), MASK[2:]])

GARBAGE = {"nan": torch.nan, "inf": torch.inf, "minus inf": -torch.inf, "huge": 1e200}


def padded_inputs(mask: Tensor) -> Inputs:
    return make_inputs(batch=len(mask), queries=mask.shape[1])


def valid_part(x: Tensor, mask: Tensor, sample: int, token_dims: tuple[int, ...]) -> Tensor:
    x = x[sample : sample + 1]
    for dim in token_dims:
        x = x.index_select(dim, (~mask[sample]).nonzero().squeeze(-1))
    return x


def padded_part(x: Tensor, mask: Tensor, token_dims: tuple[int, ...]) -> Tensor:
    """Return all entries with a padded token on one of their axes, flattened."""
    padded = torch.zeros(x.shape, dtype=torch.bool)
    for dim in token_dims:
        shape = [1] * x.dim()
        shape[0], shape[dim] = mask.shape
        padded |= mask.view(shape)
    return x[padded]


def fill_padded(x: Tensor, mask: Tensor, token_dims: tuple[int, ...], value: float) -> Tensor:
    for dim in token_dims:
        shape = [1] * x.dim()
        shape[0], shape[dim] = mask.shape
        x = x.masked_fill(mask.view(shape), value)
    return x


@every_operator
def test_padded_batch_equals_the_unpadded_samples_one_by_one(operator):
    inputs = padded_inputs(MASK)
    cotangents = make_cotangents(operator(inputs))
    results, gradients = operator.run(inputs, cotangents, key_padding_mask=MASK)
    shared = {name: 0.0 for name in operator.reads if name not in PER_TOKEN}
    for b in range(len(MASK)):
        tokens = {name: valid_part(getattr(inputs, name), MASK, b, (2,)) for name in PER_TOKEN}
        cotangents_alone = [
            valid_part(cotangent, MASK, b, dims)
            for cotangent, dims in zip(cotangents, operator.token_dims, strict=True)
        ]
        alone, gradients_alone = operator.run(replace(inputs, **tokens), cotangents_alone)
        for result, expected, dims in zip(results, alone, operator.token_dims, strict=True):
            assert_close64(valid_part(result, MASK, b, dims), expected)
        for name, gradient in gradients_alone.items():
            if name in PER_TOKEN:
                assert_close64(valid_part(gradients[name], MASK, b, (2,)), gradient)
            else:
                shared[name] = shared[name] + gradient
    for name, gradient in shared.items():
        assert_close64(gradients[name], gradient)


@every_operator
def test_padded_places_are_zero_in_results_and_gradients(operator):
    results, gradients = operator.run(padded_inputs(MASK), key_padding_mask=MASK)
    for result, dims in zip(results, operator.token_dims, strict=True):
        assert not padded_part(result, MASK, dims).any()
        # ... and only there: the sample without padding has no zero row.
        assert result[0].any(dim=-1).all()
    for name in set(operator.reads) & set(PER_TOKEN):
        assert not padded_part(gradients[name], MASK, (2,)).any()


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@every_operator
def test_what_stands_in_padded_places_changes_nothing(operator, garbage):
    inputs = padded_inputs(MASK_WITH_EMPTY)
    cotangents = make_cotangents(operator(inputs))
    spoilt = inputs.map_tokens(lambda x: fill_padded(x, MASK_WITH_EMPTY, (2,), garbage))
    assert not torch.equal(spoilt.q, inputs.q)
    # The gradient of a loss at padded outputs may be anything.
    spoilt_cotangents = tuple(
        fill_padded(cotangent, MASK_WITH_EMPTY, dims, garbage)
        for cotangent, dims in zip(cotangents, operator.token_dims, strict=True)
    )
    expected = operator.run(inputs, cotangents, key_padding_mask=MASK_WITH_EMPTY)
    results, gradients = operator.run(spoilt, spoilt_cotangents, key_padding_mask=MASK_WITH_EMPTY)
    for result, clean in zip(results, expected[0], strict=True):
        assert clean.isfinite().all()
        assert torch.equal(result, clean)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[1][name])


@every_operator
def test_sample_without_valid_tokens_is_zero_and_disturbs_no_other(operator):
    inputs = padded_inputs(MASK_WITH_EMPTY)
    others = inputs.map_tokens(lambda x: torch.cat([x[:2], x[3:]]))
    cotangents = make_cotangents(operator(inputs))
    cotangents_of_others = [torch.cat([x[:2], x[3:]]) for x in cotangents]
    results, gradients = operator.run(inputs, cotangents, key_padding_mask=MASK_WITH_EMPTY)
    expected = operator.run(others, cotangents_of_others, key_padding_mask=MASK)
    for result, of_others in zip(results, expected[0], strict=True):
        assert not result[2].any()
        assert_close64(torch.cat([result[:2], result[3:]]), of_others)
    for name, of_others in expected[1].items():
        gradient = gradients[name]
        if name in PER_TOKEN:
            assert not gradient[2].any()
            gradient = torch.cat([gradient[:2], gradient[3:]])
        assert_close64(gradient, of_others)


@every_operator
def test_batch_without_any_valid_token_is_zero(operator):
    inputs = make_inputs().map_tokens(lambda x: torch.full_like(x, torch.nan))
    mask = torch.ones(2, 7, dtype=torch.bool)
    results, gradients = operator.run(inputs, key_padding_mask=mask)
    for x in (*results, *gradients.values()):
        assert torch.equal(x, torch.zeros_like(x))


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@every_operator
def test_no_nan_is_met_on_the_way_back(operator):
    # The final gradients are clean; anomaly detection would still report a NaN in between.
    inputs = padded_inputs(MASK_WITH_EMPTY)
    spoilt = inputs.map_tokens(lambda x: fill_padded(x, MASK_WITH_EMPTY, (2,), torch.nan))
    with torch.autograd.detect_anomaly(check_nan=True):
        operator.run(spoilt, key_padding_mask=MASK_WITH_EMPTY)


@every_operator
def test_mask_that_masks_nothing_is_no_mask(operator):
    inputs = make_inputs()
    masked = operator.run(inputs, key_padding_mask=torch.zeros(2, 7, dtype=torch.bool))
    plain = operator.run(inputs)
    for result, expected in zip(masked[0], plain[0], strict=True):
        assert_close64(result, expected)
    for name, gradient in plain[1].items():
        assert_close64(masked[1][name], gradient)


def test_masked_plan_is_doubly_stochastic_over_the_valid_tokens():
    inputs = padded_inputs(MASK)
    ready = OPERATORS["sinkhorn_duals"](inputs, num_iters=400, key_padding_mask=MASK)[0]
    A = OPERATORS["attention_plan"](replace(inputs, row_dual=ready), key_padding_mask=MASK)[0]
    valid = (~MASK).double()[:, None, :].expand(A.shape[:3])
    assert_close64(A.sum(dim=-1), valid)
    assert_close64(A.sum(dim=-2), valid)


def test_one_valid_token_attends_to_itself():
    inputs = padded_inputs(MASK[3:])
    for name in ("sinkhorn_attention", "closure_attention", "asap_attention"):
        out = OPERATORS[name](inputs, key_padding_mask=MASK[3:])[0]
        assert_close64(out[:, :, 4], inputs.v[:, :, 4])
