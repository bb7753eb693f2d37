"""Coarse duals: against POT and Sinkhorn, their weights, gradients, padding and refusals."""

import math
import re
from dataclasses import replace

import ot
import pytest
import torch
from torch import Tensor

from asap_exp import ops
from asap_exp.ops import Subset, choose_subset, coarse_attention, coarse_duals, coarse_plan
from tests.ops import plain
from tests.ops import test_padding as padding
from tests.ops.inputs import (
    TEACHER,
    Inputs,
    Operator,
    assert_close64,
    centred,
    make_inputs,
    relative_rms,
)
from tests.ops.test_gradients import MASK, OPTIONS, gradcheck

SHAPES = [(6, 6), (5, 9), (9, 4)]
FORMS = {"two-sided": False, "one pass": True}
every_form = pytest.mark.parametrize("one_pass", FORMS.values(), ids=FORMS)


def some(x: Tensor, mask: Tensor | None = None) -> Subset:
    return choose_subset(x, 4, choice="random", weights="voronoi", key_padding_mask=mask)


def subsets_of(q: Tensor, k: Tensor, mask: Tensor | None) -> dict[str, Subset]:
    """Choose four of the tokens; in cross-attention, of queries and of keys by themselves."""
    if q.shape[2] == k.shape[2]:
        return {"subset": some(k, mask)}
    return {"subset": some(q), "key_subset": some(k)}


def coarse_of(function, **fixed):
    """Return the operator on a subset that it chooses, as an attention does."""

    def call(q, k, *v, **options):
        chosen = subsets_of(q, k, options.get("key_padding_mask"))
        return function(q, k, *v, **chosen, **options)

    return call, {"num_iters": 3, **fixed}


def operator_of(function, reads: str, *token_dims: tuple[int, ...], **fixed) -> Operator:
    call, fixed = coarse_of(function, **fixed)
    return Operator(call, tuple(reads.split()), token_dims, fixed)


COARSE = {
    "two-sided": operator_of(coarse_attention, "q k v", (2,)),
    "refined": operator_of(coarse_attention, "q k v", (2,), refine=2),
    "one pass": operator_of(coarse_attention, "q k v", (2,), one_pass=True),
    "duals": operator_of(coarse_duals, "q k", (2,), (2,)),
    "two-sided plan": operator_of(coarse_plan, "q k", (2, 3)),
    "refined plan": operator_of(coarse_plan, "q k", (2, 3), refine=2),
    "one-pass plan": operator_of(coarse_plan, "q k", (2, 3), one_pass=True),
}
every_operator = pytest.mark.parametrize("operator", COARSE.values(), ids=COARSE)


def everything(x: Tensor) -> Subset:
    return choose_subset(x, x.shape[2])


def present(subset: Subset) -> tuple[Tensor, Tensor]:
    """Return the tokens of the first head that have weight, and it."""
    tokens, weight = (part[0, 0] for part in subset)
    return tokens[weight > 0], weight[weight > 0]


def weighted_sinkhorn(S: Tensor, of_rows: Tensor, of_columns: Tensor, num_iters: int) -> Tensor:
    """Return POT's dual of the columns after `num_iters` updates with these masses, cost -S.

    POT's potentials scale exp(S) itself, while ours stand beside the masses.
    """
    a, b = of_rows / of_rows.sum(), of_columns / of_columns.sum()
    _, log = ot.sinkhorn(
        a.numpy(),
        b.numpy(),
        -S.numpy(),
        1.0,
        method="sinkhorn_log",
        numItermax=num_iters,
        stopThr=0,
        warn=False,
        warmstart=(a.log().numpy(), torch.zeros_like(b).numpy()),
        log=True,
    )
    return torch.from_numpy(log["log_v"]) - b.log()


@pytest.mark.parametrize("num_iters", [1, 2, 20])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_subset_of_everything_is_sinkhorn(queries, keys, num_iters):
    inputs = make_inputs(queries=queries, keys=keys)
    q, k, v = inputs.q, inputs.k, inputs.v
    of_all = {"subset": everything(q), "key_subset": everything(k), "num_iters": num_iters}
    teacher = ops.sinkhorn_duals(q, k, num_iters=num_iters, eps=0.7)
    duals = coarse_duals(q, k, **of_all, eps=0.7)
    assert_close64(duals.ready, teacher.ready)
    assert_close64(duals.col, teacher.col)
    out = ops.sinkhorn_attention(q, k, v, num_iters=num_iters, eps=0.7)
    for one_pass in FORMS.values():
        found = coarse_attention(q, k, v, **of_all, one_pass=one_pass, eps=0.7)
        assert_close64(found, out)


@pytest.mark.parametrize("num_iters", [2, 5])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_duals_of_a_subset_are_those_of_pot_extended(queries, keys, num_iters):
    inputs = make_inputs(queries=queries, keys=keys, batch=1, heads=1)
    q, k = inputs.q, inputs.k
    rows, columns = some(q), some(k)
    found = coarse_duals(q, k, subset=rows, key_subset=columns, num_iters=num_iters)
    S = plain.logits(q, k, eps=1.0, scale=0.5)[0, 0]
    (i, of_rows), (j, of_columns) = present(rows), present(columns)
    assert len(set(of_rows.tolist())) > 1, "weights differ"
    g = weighted_sinkhorn(S[i][:, j], of_rows, of_columns, num_iters - 1)
    ready = -torch.logsumexp(S[:, j] + g + of_columns.log(), dim=1)
    f = -torch.logsumexp(S[i][:, j] + g + of_columns.log(), dim=1)
    col = math.log(queries / keys) - torch.logsumexp(S[i] + (f + of_rows.log())[:, None], dim=0)
    # POT's dual has another constant.
    assert_close64(centred(found.ready[0, 0]), centred(ready))
    assert_close64(centred(found.col[0, 0]), centred(col))


@pytest.mark.parametrize("refine", [0, 1, 4])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_further_updates_start_from_the_prediction(queries, keys, refine):
    inputs = make_inputs(queries=queries, keys=keys)
    q, k, v = inputs.q, inputs.k, inputs.v
    options = {**subsets_of(q, k, None), "num_iters": 3, "eps": 0.7}
    S = plain.logits(q, k, eps=0.7, scale=0.5)
    ready = coarse_duals(q, k, **options).ready
    A = plain.sinkhorn_plan(S, refine + 1, row_dual=ready)
    assert_close64(coarse_plan(q, k, **options, refine=refine), A)
    assert_close64(coarse_attention(q, k, v, **options, refine=refine), A @ v)


def test_started_from_a_prediction_fewer_updates_come_as_near():
    inputs = make_inputs(queries=64, head_dim=8).map_tokens(lambda x: 1.5 * x)
    q, k, v = inputs.q, inputs.k, inputs.v
    converged = ops.sinkhorn_attention(q, k, v, num_iters=2000)
    subset = choose_subset(k, 24, choice="farthest", weights="voronoi")
    warm = [
        relative_rms(coarse_attention(q, k, v, subset=subset, refine=refine), converged)
        for refine in (0, 2, 4)
    ]
    cold = [
        relative_rms(ops.sinkhorn_attention(q, k, v, num_iters=num_iters), converged)
        for num_iters in (1, 3, 5)
    ]
    assert warm == sorted(warm, reverse=True)
    assert all(a < 0.7 * b for a, b in zip(warm, cold, strict=True))


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
@pytest.mark.parametrize("mask", [None, padding.MASK[1:2]], ids=["whole", "padded"])
def test_implicit_gradient_is_that_of_the_plan_wherever_it_started(queries, keys, mask):
    if mask is not None:
        queries = keys = mask.shape[1]
    inputs = make_inputs(batch=1, queries=queries, keys=keys)
    options = {"key_padding_mask": mask, "implicit_steps": keys, **OPTIONS}
    found = COARSE["refined"].run(inputs, refine=999, **options)[1]
    expected = TEACHER.run(inputs, num_iters=1000, **options)[1]
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-10)
    few = COARSE["refined"].run(inputs, **options)[1]["q"]
    assert relative_rms(few, expected["q"]) > 1e-4


@pytest.mark.parametrize("mask", [None, padding.MASK[1:2]], ids=["whole", "padded"])
@every_form
def test_plan_is_that_of_the_duals(one_pass, mask):
    inputs = make_inputs(batch=1)
    q, k, v = inputs.q, inputs.k, inputs.v
    options = {"subset": some(k, mask), "num_iters": 3, "key_padding_mask": mask}
    ready, col = coarse_duals(q, k, **options)
    A = coarse_plan(q, k, **options, one_pass=one_pass)
    if one_pass:
        S = plain.logits(q, k, eps=1.0, scale=0.5) + col[..., None, :]
        valid = torch.ones(1, 7, dtype=torch.bool) if mask is None else ~mask
        S = S.masked_fill(~valid[:, None, None], -torch.inf)
        expected = S.softmax(dim=-1) * valid[:, None, :, None]
    else:
        expected = ops.attention_plan(q, k, ready, key_padding_mask=mask)
    assert_close64(A, expected)
    assert_close64(coarse_attention(q, k, v, **options, one_pass=one_pass), A @ v)


@every_form
def test_more_tokens_come_closer_to_the_teacher(one_pass):
    inputs = make_inputs(queries=64, head_dim=8)
    q, k, v = inputs.q, inputs.k, inputs.v
    teacher = ops.sinkhorn_attention(q, k, v)
    errors = [
        relative_rms(
            coarse_attention(q, k, v, subset=choose_subset(k, count), one_pass=one_pass), teacher
        )
        for count in (4, 16, 64)
    ]
    assert errors[0] > 1.5 * errors[1]
    assert errors[2] < 1e-12


@every_form
def test_a_token_of_weight_two_is_two_equal_tokens(one_pass):
    """With such a token, its twin need not be in the subset, and the teacher is met exactly."""
    inputs = make_inputs(queries=6)
    q, k, v = (torch.cat([x, x[:, :, 2:3]], dim=2) for x in (inputs.q, inputs.k, inputs.v))
    weight = torch.tensor([1.0, 1, 2, 1, 1, 1], dtype=torch.float64)[None, None]
    merged = Subset(torch.arange(6)[None, None], weight)
    found = coarse_attention(q, k, v, subset=merged, num_iters=4, one_pass=one_pass)
    assert_close64(found, ops.sinkhorn_attention(q, k, v, num_iters=4))
    unweighted = Subset(merged.tokens, torch.ones_like(weight))
    other = coarse_attention(q, k, v, subset=unweighted, num_iters=4, one_pass=one_pass)
    assert (other - found).abs().max() > 1e-3


@every_form
def test_only_the_ratios_of_weights_matter_and_weight_zero_is_absence(one_pass):
    inputs = make_inputs()
    q, k, v = inputs.q, inputs.k, inputs.v
    options = {"num_iters": 4, "one_pass": one_pass}
    weight = torch.tensor([1.0, 3, 0, 2], dtype=torch.float64)[None, None]
    tokens = torch.tensor([0, 2, 3, 6])[None, None]
    found = coarse_attention(q, k, v, subset=Subset(tokens, weight), **options)
    present = weight[0, 0] > 0
    shorter = Subset(tokens[..., present], 5 * weight[..., present])
    assert_close64(coarse_attention(q, k, v, subset=shorter, **options), found)
    duals = [coarse_duals(q, k, subset=s) for s in (Subset(tokens, weight), shorter)]
    assert_close64(duals[0].ready, duals[1].ready)
    assert_close64(duals[0].col, duals[1].col)


@every_form
def test_tokens_that_all_weigh_nothing_weigh_the_same(one_pass):
    """Such as those of a sample in which all tokens of the subset are padded."""
    inputs = make_inputs()
    q, k, v = inputs.q, inputs.k, inputs.v
    tokens, weight = torch.tensor([0, 2, 6])[None, None], torch.ones(1, 1, 3, dtype=torch.float64)
    mask = torch.zeros(q.shape[0], q.shape[2], dtype=torch.bool)
    mask[0, tokens.flatten()] = True
    options = {"num_iters": 4, "one_pass": one_pass}
    expected = coarse_attention(q, k, v, subset=Subset(tokens, weight), **options)
    nothing = coarse_attention(q, k, v, subset=Subset(tokens, 0 * weight), **options)
    assert_close64(nothing, expected)
    out = coarse_attention(q, k, v, subset=Subset(tokens, weight), key_padding_mask=mask, **options)
    assert out.isfinite().all()


@every_form
def test_order_of_the_tokens_does_not_matter(one_pass):
    inputs = make_inputs()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    subset = some(inputs.k)
    where = order.argsort()[subset.tokens]
    permuted = inputs.map_tokens(lambda x: x[:, :, order])
    options = {"num_iters": 3, "one_pass": one_pass}
    out = coarse_attention(inputs.q, inputs.k, inputs.v, subset=subset, **options)
    moved = Subset(where, subset.weight)
    found = coarse_attention(permuted.q, permuted.k, permuted.v, subset=moved, **options)
    assert_close64(found, out[:, :, order])


PADDING = {
    name.removeprefix("test_"): getattr(padding, name)
    for name in (
        "test_padded_batch_equals_the_unpadded_samples_one_by_one",
        "test_padded_places_are_zero_in_results_and_gradients",
        "test_sample_without_valid_tokens_is_zero_and_disturbs_no_other",
        "test_batch_without_any_valid_token_is_zero",
        "test_mask_that_masks_nothing_is_no_mask",
    )
}


@pytest.mark.parametrize("test", PADDING.values(), ids=PADDING)
@every_operator
def test_padding(operator, test):
    test(operator)


@pytest.mark.parametrize("garbage", padding.GARBAGE.values(), ids=padding.GARBAGE)
@every_operator
def test_what_stands_in_padded_places_changes_nothing(operator, garbage):
    padding.test_what_stands_in_padded_places_changes_nothing(operator, garbage)


def test_padded_token_in_a_subset_weighs_nothing():
    inputs = make_inputs(batch=1)
    q, k, v = inputs.q, inputs.k, inputs.v
    mask = torch.tensor([[False, False, False, True, False, False, False]])
    with_it, without = (
        Subset(torch.tensor(tokens)[None, None], torch.ones(1, 1, len(tokens)))
        for tokens in ([0, 3, 5], [0, 5])
    )
    found, expected = (
        coarse_attention(q, k, v, subset=subset, key_padding_mask=mask)
        for subset in (with_it, without)
    )
    assert_close64(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [5, 6])
@every_operator
def test_gradients_are_those_of_finite_differences(operator, keys):
    inputs = make_inputs(batch=1, heads=2, queries=5, keys=keys, head_dim=2, value_dim=2)
    assert gradcheck(operator, inputs, **OPTIONS)


@pytest.mark.slow
@every_operator
def test_gradients_with_padding_are_those_of_finite_differences(operator):
    inputs = make_inputs(batch=2, heads=2, queries=3, head_dim=2, value_dim=2)
    assert gradcheck(operator, inputs, key_padding_mask=MASK, **OPTIONS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_operator
def test_dtypes(operator, dtype):
    inputs = make_inputs(queries=33, head_dim=8).map(lambda x: x.to(dtype))
    results, gradients = operator.run(inputs)
    exact = operator(inputs.map(torch.Tensor.double))
    of_values = "v" in operator.reads
    for result, expected in zip(results, exact, strict=True):
        assert result.dtype == (dtype if of_values else torch.float32)
        assert relative_rms(result, expected) < (4 * torch.finfo(dtype).eps if of_values else 1e-5)
    assert {gradient.dtype for gradient in gradients.values()} == {dtype}


@pytest.mark.parametrize("size", [0.0, 1e3])
@every_operator
def test_results_and_gradients_of_extreme_logits_are_finite(operator, size):
    inputs = make_inputs(queries=6)
    results, gradients = operator.run(replace(inputs, q=size * inputs.q))
    for x in (*results, *gradients.values()):
        assert x.isfinite().all()


@every_operator
def test_empty_batch_gives_an_empty_result(operator):
    inputs: Inputs = make_inputs().map_tokens(lambda x: x[:0])
    for result in operator(inputs):
        assert result.shape[0] == 0


SUBSET = Subset(torch.tensor([[[0, 2]]]), torch.ones(1, 1, 2))
WRONG = {
    "no subset": ({"subset": [0, 2]}, TypeError, "subset must be a Subset.*got list"),
    "a pair": ({"subset": tuple(SUBSET)}, TypeError, "subset must be a Subset.*got tuple"),
    "tokens": (
        {"subset": SUBSET._replace(tokens=torch.ones(1, 1, 2))},
        TypeError,
        r"subset\.tokens must be an int64.*float32",
    ),
    "weight": (
        {"subset": SUBSET._replace(weight=torch.ones(1, 1, 3))},
        ValueError,
        r"subset\.weight must be .* got \(1, 1, 3\)",
    ),
    "heads": (
        {"subset": Subset(*(x.expand(1, 2, 2) for x in SUBSET))},
        ValueError,
        r"\[2 or 1, 3 or 1.* got \(1, 2, 2\)",
    ),
    "empty": (
        {"subset": Subset(*(x[..., :0] for x in SUBSET))},
        ValueError,
        r"subset\.tokens .* got \(1, 1, 0\)",
    ),
    "dimensions": (
        {"subset": SUBSET._replace(tokens=SUBSET.tokens[0])},
        ValueError,
        r"subset\.tokens .* got \(1, 2\)",
    ),
    "beyond": (
        {"subset": SUBSET._replace(tokens=SUBSET.tokens + 40)},
        ValueError,
        r"subset\.tokens must be from 0 to \d+, got 40 to 42: choose the subset among these",
    ),
    "before": ({"subset": SUBSET._replace(tokens=-SUBSET.tokens)}, ValueError, "got -2 to 0"),
    "negative": (
        {"subset": SUBSET._replace(weight=-SUBSET.weight)},
        ValueError,
        r"subset\.weight must be at least 0 and finite, got -1\.0 to -1\.0",
    ),
    "not a number": (
        {"key_subset": SUBSET._replace(weight=SUBSET.weight / 0 * 0)},
        ValueError,
        r"key_subset\.weight must be at least 0 and finite, got nan",
    ),
    "key_subset": ({"key_subset": 3}, TypeError, "key_subset must be a Subset.*got int"),
    "num_iters": ({"num_iters": 0}, ValueError, "num_iters must be at least 1, got 0"),
    "eps": ({"eps": 0.0}, ValueError, "eps must be finite and > 0"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("function", [coarse_attention, coarse_duals, coarse_plan])
def test_wrong_arguments(function, case):
    options, error, message = case
    inputs = make_inputs()
    tensors = (inputs.q, inputs.k, inputs.v)[: 3 if function is coarse_attention else 2]
    with pytest.raises(error, match=message):
        function(*tensors, **{"subset": SUBSET, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"refine": -1}, ValueError, "refine must be at least 0, got -1"),
        ({"refine": 1, "one_pass": True}, ValueError, "refine=1 must not be given with one_pass"),
        ({"implicit_steps": 0}, ValueError, "implicit_steps must be at least 1, got 0"),
        (
            {"implicit_steps": 2, "one_pass": True},
            ValueError,
            "implicit_steps=2 must not be given with one_pass=True, which makes no update",
        ),
    ],
)
def test_wrong_options_of_further_updates(options, error, message):
    inputs = make_inputs()
    with pytest.raises(error, match=message):
        coarse_attention(inputs.q, inputs.k, inputs.v, subset=SUBSET, **options)


def test_subset_of_the_keys_is_asked_for_where_it_is_needed():
    inputs = make_inputs(queries=7, keys=5)
    message = "key_subset must be given for 7 queries and 5 keys"
    with pytest.raises(ValueError, match=re.escape(message)):
        coarse_attention(inputs.q, inputs.k, inputs.v, subset=SUBSET)
    with pytest.raises(TypeError, match="one_pass must be True or False, got 1"):
        coarse_attention(inputs.q, inputs.q, inputs.q, subset=SUBSET, one_pass=1)
