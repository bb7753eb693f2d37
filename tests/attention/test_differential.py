"""Differential attention against its formula and timm's layer, and training it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import asap_exp
from asap_exp.attention import (
    DifferentialAttention,
    MultiHeadAttention,
    attention_layers,
    build_attention,
)
from asap_exp.attention.diagnostics import entropy
from asap_exp.core.errors import UserError
from tests.attention.convertible import of_timm
from tests.attention.inputs import HEAD_DIM, HEADS, MASK, make_qkv, normal

EACH = pytest.mark.parametrize("lambda_per", ["head", "layer"])


def layer_of(dtype: torch.dtype = torch.float64, depth: int = 0, **options: Any) -> Any:
    """Return a layer whose attention has parameters far from where they start."""
    torch.manual_seed(0)
    attention = DifferentialAttention(**options)
    attention.depth = depth
    layer = MultiHeadAttention(HEADS * HEAD_DIM, HEADS, attend=attention)
    with torch.no_grad():
        for seed, parameter in enumerate(attention.parameters()):
            parameter.add_(0.5 * normal(*parameter.shape, seed=20 + seed))
    return layer.to(dtype)


def by_hand(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the plan and the output of the formulas, head by head."""
    plans, outs = [], []
    start = 0.8 - 0.6 * math.exp(-0.3 * attention.depth)
    half = HEAD_DIM // 2
    for h in range(HEADS):
        g = h if attention.lambda_per == "head" else 0
        lq1, lk1, lq2, lk2 = (
            getattr(attention, f"lambda_{name}")[g] for name in ("q1", "k1", "q2", "k2")
        )
        lambda_ = (lq1 @ lk1).exp() - (lq2 @ lk2).exp() + start
        first, second = (
            (q[:, h, :, part] @ k[:, h, :, part].mT / half**0.5).softmax(dim=-1)
            for part in (slice(half), slice(half, None))
        )
        plans.append(first - lambda_ * second)
        out = plans[-1] @ v[:, h]
        rms = (out.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        outs.append((1 - start) * attention.norm_weight * out / rms)
    return torch.stack(plans, dim=1), torch.stack(outs, dim=1)


@EACH
@pytest.mark.parametrize("depth", [0, 3])
def test_plan_and_output_are_those_of_the_formulas(depth: int, lambda_per: str) -> None:
    q, k, v = (x.double() for x in make_qkv())
    attention = layer_of(depth=depth, lambda_per=lambda_per).attend
    plan, out = by_hand(attention, q, k, v)
    torch.testing.assert_close(attention.plan(q, k), plan)
    torch.testing.assert_close(attention(q, k, v), out)
    assert (plan < 0).any()


def test_rows_of_the_plan_sum_to_one_less_lambda() -> None:
    q, k, _ = (x.double() for x in make_qkv())
    attention = layer_of().attend
    rows = attention.plan(q, k, key_padding_mask=MASK).sum(dim=-1)
    wanted = (1 - attention.weight(q, q.dtype)[..., 0]) * (~MASK)[:, None]
    torch.testing.assert_close(rows, wanted.expand(rows.shape))


def test_padded_places_of_the_plan_are_zero() -> None:
    q, k, _ = make_qkv()
    plan = DifferentialAttention().plan(q, k, key_padding_mask=MASK)
    padded = MASK[:, None, :, None] | MASK[:, None, None, :]
    assert torch.equal(plan != 0, ~padded.expand(plan.shape))


@pytest.mark.parametrize("depth", [0, 5])
def test_layer_is_timm_s_with_the_same_weights(depth: int) -> None:
    timm = pytest.importorskip("timm.layers.diff_attention", reason="timm is older than its layer")
    dim = HEADS * HEAD_DIM
    theirs = timm.DiffAttention(dim, HEADS, qkv_bias=True, depth=depth).double()
    ours = layer_of(depth=depth, lambda_per="layer")
    weights = {"qkv": ours.qkv, "proj": ours.proj}
    for name, linear in weights.items():
        getattr(theirs, name).load_state_dict(linear.state_dict())
    with torch.no_grad():
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            setattr(theirs, name, torch.nn.Parameter(getattr(ours.attend, name)[0].clone()))
        theirs.sub_norm.weight.copy_(ours.attend.norm_weight)
    x = normal(3, 7, dim).double()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, True, False]])])
def test_gradients_are_those_of_finite_differences(mask: Tensor | None) -> None:
    attention = layer_of().attend
    names, weights = zip(*attention.named_parameters(), strict=True)
    q, k, v = (x[:1, :, :4].double().requires_grad_() for x in make_qkv())

    def output(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(attention, given, (q, k, v), {"key_padding_mask": mask})

    inputs = (q, k, v, *(w.detach().requires_grad_() for w in weights))
    assert torch.autograd.gradcheck(output, inputs)


@EACH
def test_every_parameter_gets_a_gradient(lambda_per: str) -> None:
    layer = layer_of(torch.float32, lambda_per=lambda_per)
    count = HEADS if lambda_per == "head" else 1
    assert layer.attend.lambda_q1.shape == (count, HEAD_DIM // 2)
    layer(normal(2, 5, HEADS * HEAD_DIM)).square().sum().backward()
    for parameter in layer.attend.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_layer_compiles_without_a_graph_break(masked: bool) -> None:
    layer, x = layer_of(torch.float32), normal(4, 7, HEADS * HEAD_DIM)
    mask = MASK if masked else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = (f(x, key_padding_mask=mask) for f in (compiled, layer))
    torch.testing.assert_close(found, expected)


def test_layers_of_a_model_have_the_lambda_of_their_depth() -> None:
    usual = of_timm("vit_tiny_patch16_224", depth=3).model
    model = asap_exp.convert(usual, attention="differential")
    found = [layer.attend.lambda_init for layer in attention_layers(model).values()]
    assert found == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])


def test_entropy_of_a_plan_with_negative_entries_is_finite() -> None:
    q, k, _ = make_qkv()
    assert entropy(DifferentialAttention().plan(q, k)).isfinite().all()


def test_odd_width_of_a_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"must be even; got 3, dim / num_heads \(of a run, model"):
        MultiHeadAttention(6, 2, attend=DifferentialAttention())
    with pytest.raises(ValueError, match="needs an even head_dim, got 3"):
        DifferentialAttention()(*(normal(1, 2, 4, 3) for _ in range(3)))


def test_wrong_option_is_refused() -> None:
    with pytest.raises(UserError, match="lambda_per must be one of head, layer, got 'token'"):
        build_attention({"name": "differential", "lambda_per": "token"})
