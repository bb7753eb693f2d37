"""Measures of a plan, each against a loop over samples, heads and valid tokens."""

import math

import pytest
import torch

from asap_exp.attention.diagnostics import (
    column_error,
    entropy,
    l1_row_distance,
    largest_column_error,
    largest_logit,
    row_error,
)
from tests.attention.inputs import HEADS, MASK, assert_close, make_qkv, normal

EMPTY = torch.cat([MASK, torch.ones(1, 7, dtype=torch.bool)])
MASKS = {"whole": None, "padded": MASK, "with an empty sample": EMPTY}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def make_plan(mask=None, keys=7, seed=0):
    """Return plans with row sums near 1 and arbitrary columns; 0 at padded positions."""
    batch = 4 if mask is None else len(mask)
    plan = normal(batch, HEADS, 7, keys, seed=seed).softmax(dim=-1)
    plan = plan * (1 + 0.1 * normal(batch, HEADS, 7, 1, seed=seed + 1))
    if mask is None:
        return plan
    return plan.masked_fill(mask[:, None, :, None] | mask[:, None, None, :], 0.0)


def valid_plans(plan, mask):
    """Return, per head, the plans of its samples on valid tokens; empty samples are left out."""
    for h in range(plan.shape[1]):
        plans = []
        for b in range(len(plan)):
            if mask is None:
                plans.append(plan[b, h].tolist())
            elif not mask[b].all():
                plans.append(plan[b, h][~mask[b]][:, ~mask[b]].tolist())
        yield plans


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def column_deviations(A):
    n, m = len(A), len(A[0])
    return [abs(m / n * sum(row[j] for row in A) - 1) for j in range(m)]


PLAIN = {
    row_error: lambda plans: mean(mean(abs(sum(row) - 1) for row in A) for A in plans),
    column_error: lambda plans: mean(mean(column_deviations(A)) for A in plans),
    largest_column_error: lambda plans: max(max(column_deviations(A)) for A in plans),
    entropy: lambda plans: mean(mean(plain_entropy(row) for row in A) for A in plans),
}
measures = pytest.mark.parametrize("measure", PLAIN, ids=lambda f: f.__name__)


def plain_entropy(row):
    return -sum(p * math.log(p) for p in row) / math.log(len(row)) if len(row) > 1 else 0.0


def one_key_rows_are_one(plan, mask):
    """A row over a single key is 1, and its entropy is 0."""
    if mask is not None:
        single = (~mask).sum(dim=-1) == 1
        plan[single] = (plan[single] > 0).float()
    return plan


@every_mask
@measures
def test_measure_of_a_plan(measure, mask):
    plan = one_key_rows_are_one(make_plan(mask), mask)
    expected = [PLAIN[measure](plans) for plans in valid_plans(plan, mask)]
    assert measure(plan, mask).shape == (HEADS,)
    assert_close(measure(plan, mask), torch.tensor(expected))


@pytest.mark.parametrize("keys", [3, 11])
@measures
def test_measure_of_a_plan_with_other_numbers_of_queries_and_keys(measure, keys):
    plan = make_plan(keys=keys)
    expected = [PLAIN[measure](plans) for plans in valid_plans(plan, None)]
    assert_close(measure(plan), torch.tensor(expected))


def plain_distance(A, T):
    rows = zip(A, T, strict=True)
    return mean(sum(abs(a - t) for a, t in zip(*pair, strict=True)) for pair in rows)


@every_mask
def test_distance_of_two_plans(mask):
    plan, teacher = make_plan(mask), make_plan(mask, seed=5)
    heads = zip(valid_plans(plan, mask), valid_plans(teacher, mask), strict=True)
    expected = [mean(map(plain_distance, plans, teachers)) for plans, teachers in heads]
    assert_close(l1_row_distance(plan, teacher, mask), torch.tensor(expected))


def test_every_sample_counts_the_same_however_long_it_is():
    # One sample of one valid token and one of seven, with row errors 1 and 0.
    mask = torch.stack([MASK[3], MASK[0]])
    plan = torch.zeros(2, HEADS, 7, 7)
    plan[0, :, 4, 4] = 2
    plan[1] = 1 / 7
    assert_close(row_error(plan, mask), torch.full((HEADS,), 0.5))


@every_mask
@pytest.mark.parametrize("eps", [1.0, 0.25])
def test_largest_logit(mask, eps):
    batch = 4 if mask is None else len(mask)
    q, k, _ = make_qkv(batch)
    if mask is not None:
        q, k = (x.masked_fill(mask[:, None, :, None], torch.nan) for x in (q, k))
    expected = []
    for h in range(HEADS):
        logits = [
            abs(sum(a * c for a, c in zip(x, y, strict=True))) / (eps * 2)
            for b in range(batch)
            for i, x in enumerate(q[b, h].tolist())
            for j, y in enumerate(k[b, h].tolist())
            if mask is None or not (mask[b, i] or mask[b, j])
        ]
        expected.append(max(logits))
    assert_close(largest_logit(q, k, eps=eps, key_padding_mask=mask), torch.tensor(expected))


def test_largest_logit_may_be_negative():
    q = torch.full((1, 1, 2, 4), 3.0)
    assert largest_logit(q, -q).item() == pytest.approx(18.0)


def test_largest_logit_of_half_precision_does_not_overflow():
    q = torch.full((1, 1, 2, 4), 300.0, dtype=torch.float16)
    assert largest_logit(q, q).item() == pytest.approx(180_000.0)


def test_known_plans():
    uniform, identity = torch.full((2, HEADS, 5, 5), 0.2), torch.eye(5).expand(2, HEADS, 5, 5)
    one, zero = torch.ones(HEADS), torch.zeros(HEADS)
    assert_close(entropy(uniform), one)
    assert_close(entropy(identity), zero)
    assert_close(column_error(uniform), zero)
    # All queries take one key: column sums 5, 0, 0, 0, 0.
    greedy = torch.zeros(2, HEADS, 5, 5)
    greedy[..., 0] = 1
    assert_close(row_error(greedy), zero)
    assert_close(column_error(greedy), 1.6 * one)
    assert_close(largest_column_error(greedy), 4 * one)
    assert_close(l1_row_distance(identity, greedy), 1.6 * one)
    # Plans without common keys have the largest possible distance.
    assert_close(l1_row_distance(identity, identity.roll(1, -1)), 2 * one)
    assert_close(entropy(torch.ones(1, HEADS, 1, 1)), zero)


@measures
def test_batch_without_a_valid_token_measures_zero(measure):
    mask = torch.ones(2, 7, dtype=torch.bool)
    assert torch.equal(measure(torch.zeros(2, HEADS, 7, 7), mask), torch.zeros(HEADS))
