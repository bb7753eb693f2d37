"""Sinkformers' attention: the half-steps of the published code, written out as loops."""

import math

import pytest
import torch

from asap_exp.attention import SinkhornAttention, SoftmaxAttention, build_attention
from asap_exp.attention.sinkformer import SinkformerAttention
from asap_exp.core.errors import UserError
from asap_exp.ops import closure_attention
from tests.attention.inputs import MASK, assert_close, make_qkv


def half_steps(S, count, detach=False, padding=None, eps=1.0):
    """Update u and v in turn, as in Sinkformers' code; return m exp((S + u + v) / eps).

    Their text models give padded keys logits of -1e9, whose v is then about 1e9, and set such a v
    to 0. (michaelsdr/sinkformers, commit 48c5cd3: text-classification-transformer/sinkhorn.py.)
    """
    n, m = S.shape[-2:]
    if padding is not None:
        S = S.masked_fill(padding[:, None, None, :], -1e9)
    u, v = torch.zeros_like(S[..., :, 0]), torch.zeros_like(S[..., 0, :])
    for step in range(count):
        if step % 2 == 0:
            rows = ((S + v[..., None, :]) / eps).logsumexp(dim=-1)
            u = -eps * (math.log(n) + rows)
        else:
            columns = ((S + u[..., :, None]) / eps).logsumexp(dim=-2)
            v = -eps * (math.log(m) + columns)
            v = v.detach() if detach else v
            v = v.masked_fill(v > 9e8, 0.0)
    return m * ((S + u[..., :, None] + v[..., None, :]) / eps).exp()


def logits(q, k):
    return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


@pytest.mark.parametrize("eps", [1.0, 0.5])
@pytest.mark.parametrize("count", [3, 5, 7, 21])
def test_plan_is_that_of_the_published_half_steps(count, eps):
    q, k, v = make_qkv()
    attention = SinkformerAttention(half_steps=count, eps=eps)
    expected = half_steps(logits(q, k), count, eps=eps)
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


@pytest.mark.parametrize("eps", [1.0, 0.5])
@pytest.mark.parametrize("padding", [None, "sinkformer"])
@pytest.mark.parametrize("detach", [False, True])
def test_plan_and_gradients_are_those_of_the_published_code(detach, padding, eps):
    """Detached as in their text models, or unrolled as in the others; padded keys as they have."""
    q, k, v = (x.double() for x in make_qkv())
    attention = SinkformerAttention(
        half_steps=5,
        eps=eps,
        gradient="detach_col" if detach else "unroll",
        padding=padding or "exact",
    )
    mask = None if padding is None else MASK

    def published(a, b):
        return half_steps(logits(a, b), 5, detach, mask, eps)

    results = []
    for plan in (lambda a, b: attention.plan(a, b, key_padding_mask=mask), published):
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        out = plan(*leaves)
        results.append((out, *torch.autograd.grad((out @ v).square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        assert found.any()
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["exact", "sinkformer"])
@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, True, False]])])
def test_unrolled_gradient_is_that_of_finite_differences(mask, padding):
    attention = SinkformerAttention(half_steps=7, padding=padding)
    leaves = [x[:1, :, :4].double().requires_grad_() for x in make_qkv()]
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention(q, k, v, key_padding_mask=mask), leaves
    )


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_detached_gradient_is_that_of_a_softmax_with_a_fixed_bias(mask):
    """The column dual is a constant there: A = softmax_j(S + g), dA = A (dS - sum_j A dS)."""
    q, k = (x.double().requires_grad_() for x in make_qkv()[:2])
    attention = SinkformerAttention(half_steps=9, gradient="detach_col")
    plan = attention.plan(q, k, key_padding_mask=mask)
    upstream = torch.randn(plan.shape, generator=torch.Generator().manual_seed(7)).double()
    of_queries, of_keys = torch.autograd.grad((plan * upstream).sum(), (q, k))
    A = plan.detach()
    of_logits = A * (upstream - (A * upstream).sum(dim=-1, keepdim=True)) * q.shape[-1] ** -0.5
    torch.testing.assert_close(of_queries, of_logits @ k.detach())
    torch.testing.assert_close(of_keys, of_logits.mT @ q.detach())


@pytest.mark.parametrize("gradient", ["unroll", "detach_col"])
def test_one_head_of_one_sample_is_as_among_others(gradient):
    """The published code drops the dimensions of one sample with one head."""
    q, k, v = make_qkv()
    attention = SinkformerAttention(gradient=gradient)
    alone = attention(*(x[:1, :1] for x in (q, k, v)))
    assert_close(alone, attention(q, k, v)[:1, :1])


def test_rows_sum_to_one_whatever_the_number_of_keys():
    """Theirs, scaled by the number of keys and not of queries, sum to m / n."""
    q, k, _ = make_qkv()
    found = SinkformerAttention(half_steps=201).plan(q, k[:, :, :4])
    assert_close(found, 7 / 4 * half_steps(logits(q, k[:, :, :4]), 201))
    assert_close(found.sum(dim=-1), torch.ones_like(found[..., 0]))
    assert_close(found.sum(dim=-2), torch.full_like(found[:, :, 0], 7 / 4), atol=1e-3)


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
