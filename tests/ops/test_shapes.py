"""Shapes, strides and symmetries, for every operator."""

from dataclasses import replace
from operator import itemgetter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ops import plain
from tests.ops.inputs import ATTENTIONS, OPERATORS, assert_close64, make_inputs

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
every_attention = pytest.mark.parametrize("operator", ATTENTIONS.values(), ids=ATTENTIONS)

TOKENS = [1, 2, 17, 63, 65, 129]


@pytest.mark.parametrize("tokens", TOKENS)
def test_results_at_token_counts_that_no_tile_fits(tokens):
    inputs = make_inputs(queries=tokens, batch=1, heads=1, slices=2)
    q, k, v = inputs.q, inputs.k, inputs.v
    S = plain.logits(q, k, eps=1.0, scale=0.5)
    phi = plain.potentials(q, k, inputs.theta, eps=1.0, scale=0.5)
    f = torch.einsum("hl,bhln->bhn", inputs.weight, phi)
    f = f + torch.einsum("hp,bhpn->bhn", inputs.query_weight, plain.query_features(q))
    expected = {
        "sinkhorn_attention": plain.sinkhorn_plan(S, 3) @ v,
        "closure_attention": plain.sinkhorn_plan(S, 1, inputs.row_dual) @ v,
        "softmax_attention": torch.softmax(S, dim=-1) @ v,
        "attention_plan": plain.sinkhorn_plan(S, 1, inputs.row_dual),
        "sliced_potentials": phi,
        "predicted_dual": f,
        "asap_attention": plain.sinkhorn_plan(S, 2, f) @ v,
    }
    for name, result in expected.items():
        options = {"refine": 0} if name == "predicted_dual" else {}
        assert_close64(OPERATORS[name](inputs, **options)[0], result)


@pytest.mark.parametrize(("queries", "keys"), [(1, 17), (17, 1), (65, 2), (63, 129)])
def test_shapes_of_cross_attention(queries, keys):
    inputs = make_inputs(batch=2, heads=3, queries=queries, keys=keys, slices=2)
    shapes = {
        name: [tuple(result.shape) for result in operator(inputs)]
        for name, operator in OPERATORS.items()
    }
    assert shapes == {
        "sinkhorn_attention": [(2, 3, queries, 5)],
        "relaxed_sinkhorn_attention": [(2, 3, queries, 5)],
        "sinkhorn_duals": [(2, 3, queries), (2, 3, queries), (2, 3, keys)],
        "closure_attention": [(2, 3, queries, 5)],
        "softmax_attention": [(2, 3, queries, 5)],
        "sliced_potentials": [(2, 3, 2, queries)],
        "asap_attention": [(2, 3, queries, 5)],
        "predicted_dual": [(2, 3, queries)],
        "adaptive_asap_attention": [(2, 3, queries, 5)],
        "adaptive_dual": [(2, 3, queries)],
        "relaxed_asap_attention": [(2, 3, queries, 5)],
        "relaxed_dual": [(2, 3, queries)],
        "one_pass_asap_attention": [(2, 3, queries, 5)],
        "one_pass_dual": [(2, 3, keys)],
        "adaptive_features": [(2, 3, 5, 2, queries)],
        "logit_features": [(2, 3, 3, queries)],
        "query_features": [(2, 3, 5, queries)],
        "attention_plan": [(2, 3, queries, keys)],
    }


@every_operator
def test_samples_and_heads_do_not_mix(operator):
    inputs = make_inputs(batch=2, heads=3, queries=6)
    together = operator(inputs)
    for b in range(2):
        for h in range(3):
            alone = inputs.map(itemgetter(slice(h, h + 1)))
            tokens = {
                name: getattr(inputs, name)[b : b + 1, h : h + 1]
                for name in ("q", "k", "v", "row_dual")
            }
            for result, expected in zip(operator(replace(alone, **tokens)), together, strict=True):
                assert_close64(result, expected[b : b + 1, h : h + 1])


@every_operator
def test_empty_batch(operator):
    inputs = make_inputs(batch=0, queries=5)
    mask = torch.zeros(0, 5, dtype=torch.bool)
    expected = [(0, *result.shape[1:]) for result in operator(make_inputs(batch=1, queries=5))]
    for options in ({}, {"key_padding_mask": mask}):
        results, gradients = operator.run(inputs, **options)
        assert [tuple(result.shape) for result in results] == expected
        for name, gradient in gradients.items():
            assert gradient.shape == getattr(inputs, name).shape
            assert not gradient.any()


@pytest.mark.parametrize("width", [1, 3, 11])
@every_attention
def test_values_may_have_another_width(operator, width):
    inputs = make_inputs(value_dim=11)
    narrow = replace(inputs, v=inputs.v[..., :width])
    assert_close64(operator(narrow)[0], operator(inputs)[0][..., :width])


def strided(x):
    """Return the same values at every second position in memory, with NaN between them."""
    spread = torch.full((*x.shape, 2), torch.nan).to(x.dtype)
    spread[..., 0] = x
    return spread[..., 0]


def tokens_before_heads(x):
    """Return `x` laid out as attention modules produce it, by a view and a transpose."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@every_operator
def test_strides_do_not_matter(operator):
    inputs = make_inputs(queries=6)
    mask = torch.arange(6) >= torch.tensor([[6], [4]])
    for view in (inputs.map(strided), inputs.map_tokens(tokens_before_heads)):
        assert not view.q.is_contiguous()
        for result, expected in zip(operator(view), operator(inputs), strict=True):
            assert_close64(result, expected)
        masked = operator(view, key_padding_mask=strided(mask))
        for result, expected in zip(masked, operator(inputs, key_padding_mask=mask), strict=True):
            assert_close64(result, expected)


@every_operator
def test_broadcast_inputs(operator):
    inputs = make_inputs(batch=1)
    stretched = inputs.map_tokens(lambda x: x.expand(4, *x.shape[1:]))
    for result, expected in zip(operator(stretched), operator(inputs), strict=True):
        assert_close64(result, expected.expand_as(result))


@every_attention
def test_attention_follows_the_queries_and_ignores_the_order_of_the_keys(operator):
    inputs = make_inputs(queries=9, keys=6)
    out = operator(inputs)[0]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    permuted = replace(inputs, q=inputs.q[:, :, order], row_dual=inputs.row_dual[:, :, order])
    assert_close64(operator(permuted)[0], out[:, :, order])
    keys_order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    shuffled = replace(inputs, k=inputs.k[:, :, keys_order], v=inputs.v[:, :, keys_order])
    assert_close64(operator(shuffled)[0], out)
    # Permuting keys without their values is a different problem.
    mismatched = replace(inputs, k=inputs.k[:, :, keys_order])
    assert (operator(mismatched)[0] - out).abs().max() > 0.05


@every_operator
def test_inputs_are_left_alone(operator):
    inputs = make_inputs(queries=6, keys=6)
    before = inputs.map(torch.clone)
    operator(inputs, key_padding_mask=torch.arange(6) >= torch.tensor([[6], [4]]))
    for name in operator.reads:
        assert torch.equal(getattr(inputs, name), getattr(before, name))


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
@pytest.mark.parametrize("masked", [False, True])
@every_operator
def test_meta_tensors_give_shape_and_dtype(operator, masked, backend):
    """This holds in half precision too: nothing is computed, so no backend is missing."""
    for dtype in (torch.float32, torch.float16):
        inputs = make_inputs(dtype=dtype)
        options = {}
        if operator.function.__name__ != "query_features":
            mask = torch.zeros(inputs.q.shape[:1] + inputs.q.shape[2:3], dtype=torch.bool)
            options = {"key_padding_mask": mask} if masked else {}
        expected = operator(inputs, **options)
        on_meta = {name: value.to("meta") for name, value in options.items()}
        if operator.function.__name__ != "query_features":
            on_meta["backend"] = backend
        results = operator(inputs.map(lambda x: x.to("meta")), **on_meta)
        assert all(result.is_meta for result in results)
        for result, wanted in zip(results, expected, strict=True):
            assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@every_attention
def test_fake_tensors_give_the_shape(operator, device):
    """This holds for a GPU that this machine may not have, too."""
    with FakeTensorMode():
        fake = make_inputs().map(lambda x: torch.empty(x.shape, device=device))
        (result,) = operator(fake)
    assert result.shape == (2, 3, 7, 5)
    assert result.device.type == device
