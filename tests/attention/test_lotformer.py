"""LOTFormer's attention: its two plans against POT's, their product, and training it."""

import copy
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor, nn

import asap_exp
from asap_exp.attention import LotformerAttention, MultiHeadAttention, build_attention
from asap_exp.core.conf_files import attentions
from asap_exp.core.errors import UserError
from asap_exp.timing.memory import peak_memory
from tests.attention.convertible import of_timm
from tests.attention.inputs import HEAD_DIM, HEADS, MASK, make_qkv, normal


def with_weights(dtype: torch.dtype = torch.float64, **options: Any) -> LotformerAttention:
    """Return an attention of a layer, whose pivots and masses are far from where they start."""
    torch.manual_seed(0)
    attention = LotformerAttention(**{"pivots": 5, **options})
    MultiHeadAttention(HEADS * HEAD_DIM, HEADS, attend=attention)
    with torch.no_grad():
        for seed, parameter in enumerate(attention.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=20 + seed))
    return attention.to(dtype)


def doubles(tokens: int = 7, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.double() for x in make_qkv(tokens=max(tokens, keys)))
    return q[:, :, :tokens], k[:, :, :keys], v[:, :, :keys]


def factor_of_pot(a: Tensor, b: Tensor, S: Tensor, updates: int) -> Tensor:
    """Return POT's plan for the cost -S after as many updates: columns, then rows."""
    problem = [x.detach().numpy() for x in (a, b, -S)]
    options = {"method": "sinkhorn_log", "numItermax": updates, "stopThr": 0, "warn": False}
    return torch.from_numpy(ot.sinkhorn(*problem, 1.0, **options))


@pytest.mark.parametrize("updates", [1, 2, 20])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("keys", [7, 4])
def test_factors_are_the_plans_of_pot(keys: int, learned: bool, updates: int) -> None:
    q, k, _ = doubles(keys=keys)
    eps = 0.7
    attention = with_weights(num_iters=updates, learned_masses=learned, eps=eps)
    found = attention.factors(q, k)
    n, m = q.shape[2], k.shape[2]
    for b, h in np.ndindex(q.shape[:2]):
        z = attention.pivot[h]
        equal = torch.full((5,), 0.2).double()
        mass = attention.log_mass[h].softmax(dim=0) if learned else equal
        of_queries, of_keys = (
            torch.full((count,), 1 / count, dtype=torch.float64) for count in (n, m)
        )
        scale = HEAD_DIM**-0.5 / eps
        first = factor_of_pot(of_queries, mass, q[b, h] @ z.T * scale, updates)
        second = factor_of_pot(mass, of_keys, z @ k[b, h].T * scale, updates)
        torch.testing.assert_close(found.queries[b, h], n * first)
        torch.testing.assert_close(found.keys[b, h], second / mass[:, None])
        glued = n * first @ torch.diag(1 / mass) @ second
        torch.testing.assert_close(attention.plan(q, k)[b, h], glued)


def test_padded_tokens_have_no_mass_in_either_plan() -> None:
    q, k, _ = doubles()
    attention = with_weights()
    found = attention.factors(q, k, key_padding_mask=MASK)
    for b, valid in enumerate(~MASK):
        alone = attention.factors(q[b : b + 1, :, valid], k[b : b + 1, :, valid])
        torch.testing.assert_close(found.queries[b : b + 1, :, valid], alone.queries)
        torch.testing.assert_close(found.keys[b : b + 1, :, :, valid], alone.keys)
        assert not found.keys[b, ..., ~valid].any()


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_plan_is_doubly_stochastic(mask: Tensor | None) -> None:
    """Rows exactly, after any number of updates; columns as far as those have converged."""
    q, k, _ = doubles()
    valid = torch.ones_like(MASK).double() if mask is None else (~mask).double()
    errors = []
    for updates in (1, 5, 300):
        plan = with_weights(num_iters=updates).plan(q, k, key_padding_mask=mask)
        wanted = valid[:, None].expand(plan.shape[:3])
        torch.testing.assert_close(plan.sum(dim=-1), wanted)
        errors.append((plan.sum(dim=-2) - wanted).abs().max().item())
        assert torch.linalg.matrix_rank(plan).max() <= 5
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


def test_columns_of_more_queries_than_keys_sum_to_their_ratio() -> None:
    q, k, _ = doubles(keys=4)
    columns = with_weights(num_iters=300).plan(q, k).sum(dim=-2)
    torch.testing.assert_close(columns, torch.full_like(columns, 7 / 4))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, True, False]])])
def test_gradients_are_those_of_finite_differences(mask: Tensor | None) -> None:
    attention = with_weights(num_iters=2, pivots=3)
    names, weights = zip(*attention.named_parameters(), strict=True)
    q, k, v = (x[:1, :, :4].requires_grad_() for x in doubles())

    def output(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(attention, given, (q, k, v), {"key_padding_mask": mask})

    inputs = (q, k, v, *(w.detach().requires_grad_() for w in weights))
    assert torch.autograd.gradcheck(output, inputs)


def test_training_step_is_linear_in_the_tokens() -> None:
    """Four times the tokens take about four times the memory, and not a single plan."""
    attention = with_weights(torch.float32)

    def step_memory(tokens: int) -> float:
        q, k, v = (normal(1, HEADS, tokens, HEAD_DIM, seed=s).requires_grad_() for s in range(3))
        return peak_memory(lambda: attention(q, k, v).sum().backward(), q.device)

    small, large = step_memory(1024), step_memory(4096)
    assert large < 5 * small
    assert large < HEADS * 4096**2 * 4 / 2**20


def test_parameters_are_made_by_the_layer_from_the_global_seed() -> None:
    def made(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        layer = MultiHeadAttention(8, 2, attend=LotformerAttention(pivots=3))
        return dict(layer.attend.state_dict())

    first, again, other = made(0), made(0), made(1)
    assert {name: tuple(x.shape) for name, x in first.items()} == {
        "pivot": (2, 3, 4),
        "log_mass": (2, 3),
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pivot"], other["pivot"])
    assert all(x.requires_grad for x in LotformerAttention().parameters())


@pytest.mark.parametrize("head_dim", [16, 64])
def test_pivots_start_with_norms_of_one(head_dim: int) -> None:
    """As in the published image models; with smaller ones the first epochs learn nothing."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(2 * head_dim, 2, attend=LotformerAttention())
    norms = layer.attend.pivot.norm(dim=-1)
    assert norms.mean().item() == pytest.approx(1, rel=0.1)
    q, k = (normal(2, 2, 64, head_dim, seed=seed).double() for seed in (0, 1))
    plan = layer.attend.plan(q, k)
    assert (64 * plan - 1).abs().mean() > 1e-3
    torch.manual_seed(0)
    given = MultiHeadAttention(2 * head_dim, 2, attend=LotformerAttention(pivot_std=0.02))
    torch.testing.assert_close(given.attend.pivot * head_dim**-0.5, layer.attend.pivot * 0.02)


def test_plan_of_pivots_at_zero_is_a_saddle_point() -> None:
    """Why they must not start there: the plan is uniform, and no input or pivot has a gradient."""
    q, k, v = (x.requires_grad_() for x in doubles())
    attention = with_weights(learned_masses=False)
    with torch.no_grad():
        attention.pivot.zero_()
    plan = attention.plan(q, k)
    torch.testing.assert_close(plan, torch.full_like(plan, 1 / 7))
    attention(q, k, v).square().sum().backward()
    for x in (q, k, attention.pivot):
        assert x.grad is not None
        torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-15, rtol=0)
    assert v.grad is not None
    assert v.grad.any()


def test_defaults_are_those_of_the_file() -> None:
    usual = {key: x for key, x in attentions()["lotformer"].items() if key != "name"}
    built = LotformerAttention()
    assert {key: getattr(built, key) for key in usual} == usual
    assert (built.pivots, built.num_iters, built.eps) == (32, 3, 1.0)


def test_equal_masses_are_no_parameter() -> None:
    assert set(with_weights(learned_masses=False).state_dict()) == {"pivot"}


def test_attention_that_comes_back_to_its_layer_keeps_its_parameters() -> None:
    layer = MultiHeadAttention(8, 2, attend=LotformerAttention())
    attention = layer.attend
    before = copy.deepcopy(attention.state_dict())
    layer.attend = build_attention({"name": "softmax"})
    layer.attend = attention
    assert all(torch.equal(attention.state_dict()[name], before[name]) for name in before)


def test_attention_of_other_heads_is_refused() -> None:
    attention = MultiHeadAttention(8, 2, attend=LotformerAttention(pivots=3)).attend
    with pytest.raises(UserError, match=r"its pivot has shape \(2, 3, 4\), .* \(4, 3, 2\)"):
        MultiHeadAttention(8, 4, attend=attention)
    with pytest.raises(UserError, match="num_heads and head_dim of Identity; set both before"):
        LotformerAttention().attach(nn.Identity())


def test_every_parameter_of_a_layer_gets_a_gradient() -> None:
    layer = MultiHeadAttention(8, 2, attend=LotformerAttention(pivots=3))
    layer(normal(2, 5, 8)).square().sum().backward()
    for parameter in layer.attend.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


@pytest.mark.slow
def test_layer_compiles_without_a_graph_break() -> None:
    layer = MultiHeadAttention(8, 2, attend=LotformerAttention(pivots=3))
    x, mask = normal(4, 7, 8), MASK
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, key_padding_mask=mask), layer(x, key_padding_mask=mask))


def test_converted_model_has_pivots_of_its_own_in_every_layer() -> None:
    usual = of_timm("vit_tiny_patch16_224").model
    model = asap_exp.convert(usual, attention="lotformer", pivots=3)
    pivots = [x for name, x in model.named_parameters() if name.endswith("attend.pivot")]
    assert len(pivots) > 1
    assert not torch.equal(pivots[0], pivots[1])


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("pivots", 0, "pivots must be at least 1"),
        ("num_iters", 0, "num_iters must be at least 1"),
        ("eps", -1.0, "eps must be finite and > 0"),
        ("learned_masses", 1, "learned_masses must be True or False"),
        ("pivot_std", 0.0, "pivot_std must be finite and > 0, got 0.0"),
        ("pivot_std", True, "pivot_std must be a number, got True"),
    ],
)
def test_option_out_of_range_is_refused(option: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=f"attention=lotformer: {words}"):
        build_attention({"name": "lotformer", option: value})
