"""Sinkformers' attention: the half-steps of the published code, written out as loops."""

import pytest
import torch

from asap_exp.attention import SinkhornAttention, SoftmaxAttention, build_attention
from asap_exp.attention.sinkformer import SinkformerAttention
from asap_exp.core.errors import UserError
from asap_exp.ops import closure_attention
from tests.attention.inputs import MASK, assert_close, make_qkv


def half_steps(S, count, detach=False):
    """Update u and v in turn, as in Sinkformers' code; return m exp(S + u + v)."""
    n, m = S.shape[-2:]
    u, v = torch.zeros_like(S[..., :, 0]), torch.zeros_like(S[..., 0, :])
    for step in range(count):
        if step % 2 == 0:
            u = -torch.tensor(float(n)).log() - (S + v[..., None, :]).logsumexp(dim=-1)
        else:
            v = -torch.tensor(float(m)).log() - (S + u[..., :, None]).logsumexp(dim=-2)
            v = v.detach() if detach else v
    return m * (S + u[..., :, None] + v[..., None, :]).exp()


def logits(q, k, eps=1.0):
    return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 / eps


@pytest.mark.parametrize("eps", [1.0, 0.5])
@pytest.mark.parametrize("count", [3, 5, 7, 21])
def test_plan_is_that_of_the_published_half_steps(count, eps):
    q, k, v = make_qkv()
    attention = SinkformerAttention(half_steps=count, eps=eps)
    expected = half_steps(logits(q, k, eps), count)
    assert_close(attention.plan(q, k), expected)
    assert_close(attention(q, k, v), expected @ v)


def test_one_half_step_is_softmax():
    q, k, _ = make_qkv()
    assert_close(SoftmaxAttention().plan(q, k), half_steps(logits(q, k), 1))


def test_three_half_steps_are_the_closure_of_the_row_softmax_s_dual():
    q, k, v = make_qkv()
    row_dual = -logits(q, k).logsumexp(dim=-1)
    assert_close(SinkformerAttention(half_steps=3)(q, k, v), closure_attention(q, k, v, row_dual))


def test_no_number_of_updates_from_zero_is_the_same():
    q, k, _ = make_qkv()
    plan = SinkformerAttention(half_steps=3).plan(q, k)
    for num_iters in (1, 2, 3):
        other = SinkhornAttention(num_iters=num_iters).plan(q, k)
        assert (plan - other).abs().max() > 1e-3


@pytest.mark.parametrize("count", [3, 7])
def test_closure_of_the_ready_dual_is_the_plan(count):
    q, k, v = make_qkv()
    attention = SinkformerAttention(half_steps=count)
    for mask in (None, MASK):
        ready = attention.ready_dual(q, k, key_padding_mask=mask)
        closed = closure_attention(q, k, v, ready, key_padding_mask=mask)
        assert_close(attention(q, k, v, key_padding_mask=mask), closed)


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_goes_through_the_updates_or_stops_at_the_columns(detach):
    q, k, v = make_qkv()
    gradient = "detach_col" if detach else "unroll"
    attention = SinkformerAttention(half_steps=5, gradient=gradient)
    results = []
    for plan in (attention.plan, lambda a, b: half_steps(logits(a, b), 5, detach=detach)):
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        results.append(torch.autograd.grad((plan(*leaves) @ v).square().sum(), leaves))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)


def test_the_two_gradients_differ():
    q, k, v = make_qkv()
    found = []
    for gradient in ("unroll", "detach_col"):
        leaf = q.clone().requires_grad_()
        out = SinkformerAttention(gradient=gradient)(leaf, k, v)
        found.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_published_padding_leaves_padded_queries_their_mass():
    q, k, _ = make_qkv()
    attention = SinkformerAttention(half_steps=201, padding="sinkformer")
    plan = attention.plan(q, k, key_padding_mask=MASK)
    n = MASK.shape[1]
    assert not plan.transpose(-1, -2)[MASK[:, None].expand((*plan.shape[:2], n))].any()
    assert_close(plan.sum(dim=-1), torch.ones_like(plan[..., 0]))
    for b, valid in enumerate(~MASK):
        columns = plan[b].sum(dim=-2)[:, valid]
        assert_close(columns, torch.full_like(columns, n / valid.sum()), atol=1e-3)


def test_exact_padding_gives_columns_of_one():
    q, k, _ = make_qkv()
    plan = SinkformerAttention(half_steps=201).plan(q, k, key_padding_mask=MASK)
    for b, valid in enumerate(~MASK):
        columns = plan[b].sum(dim=-2)[:, valid]
        assert_close(columns, torch.ones_like(columns), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"half_steps": 4}, "must be odd"),
        ({"half_steps": 1}, "half_steps"),
        ({"gradient": "implicit"}, "unroll, detach_col"),
        ({"padding": "bias"}, "exact, sinkformer"),
    ],
)
def test_wrong_option_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        build_attention({"name": "sinkformer", **options})
