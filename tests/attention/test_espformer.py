"""ESPFormer's attention against POT's expected sliced plan and against direct formulas."""

import itertools
from typing import Any

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.attention import EspformerAttention, MultiHeadAttention, build_attention
from asap_exp.core.errors import UserError
from asap_exp.timing.memory import peak_memory
from tests.attention.inputs import HEAD_DIM, HEADS, MASK, make_qkv, normal

HARD = 1e-16  # a tau at which sorts are hard


def axes_and_points(q: Tensor, k: Tensor, directions: Tensor | None = None) -> dict:
    width = q.shape[1]
    x, y = (t.numpy() / width**0.5 for t in (q, k))
    theta = np.eye(width) if directions is None else F.normalize(directions, dim=-1).T.numpy()
    return {"X_s": x, "X_t": y, "projections": theta, "metric": "euclidean"}


def weighted_by_hand(
    q: Tensor, k: Tensor, temperature: float, directions: Tensor | None = None
) -> Tensor:
    """Return n times the expected sliced plan from POT's plan of each slice and their costs.

    Unless n = m and 1/n is exact, POT 0.9.7 confuses the weights of a plan's pairs with those of
    the queries when it sums a cost.
    """
    problem = axes_and_points(q, k, directions)
    n = len(q)
    _, _, log = ot.expected_sliced_plan(**problem, log=True)
    plans = np.zeros((len(log["G"]), n, len(k)))
    for plan, slice_ in zip(plans, log["G"], strict=True):
        np.add.at(plan, (slice_.rows, slice_.cols), slice_.data)
    distances = ot.dist(problem["X_s"], problem["X_t"], metric="euclidean")
    costs = torch.from_numpy((n * plans * distances).sum(axis=(1, 2)))
    w = torch.softmax(-temperature * costs, dim=0)
    return torch.einsum("l,lij->ij", w, torch.from_numpy(n * plans))


temperatures = pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0, 10.0])


@temperatures
def test_plan_of_hard_sorts_is_the_expected_sliced_plan(temperature: float) -> None:
    """The plan is n times POT's, whose mass is 1, for small and large inverse temperatures."""
    q, k = normal(2, 3, 12, 6).double(), normal(2, 3, 12, 6, seed=1).double()
    plan = EspformerAttention(temperature=temperature, tau=HARD).plan(q, k)
    for b, h in np.ndindex(2, 3):
        problem = axes_and_points(q[b, h], k[b, h])
        expected, _ = ot.expected_sliced_plan(**problem, beta=12 * temperature)
        torch.testing.assert_close(plan[b, h], torch.from_numpy(12 * expected))


@temperatures
@pytest.mark.parametrize("keys", [7, 8, 17])
def test_plan_of_as_many_keys_as_one_likes(temperature: float, keys: int) -> None:
    q, k = normal(1, 2, 7, 6).double(), normal(1, 2, keys, 6, seed=1).double()
    plan = EspformerAttention(temperature=temperature, tau=HARD).plan(q, k)
    for h in range(2):
        expected = weighted_by_hand(q[0, h], k[0, h], temperature)
        torch.testing.assert_close(plan[0, h], expected, rtol=1e-6, atol=1e-7)


def test_padded_tokens_are_no_atoms_of_the_expected_sliced_plan() -> None:
    q, k, _ = (x.double() for x in make_qkv())
    plan = EspformerAttention(temperature=1.0, tau=HARD).plan(q, k, key_padding_mask=MASK)
    for b, valid in enumerate(~MASK):
        expected = weighted_by_hand(q[b, 0, valid], k[b, 0, valid], 1.0)
        found = plan[b, 0, valid][:, valid]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def with_directions(slices: int = 5, **options: Any) -> EspformerAttention:
    """Return an attention of a layer that sorts along learned directions, in float64."""
    torch.manual_seed(0)
    attention = EspformerAttention(slices=slices, **options)
    MultiHeadAttention(HEADS * HEAD_DIM, HEADS, attend=attention)
    return attention.double()


@temperatures
@pytest.mark.parametrize("learned", [False, True])
def test_plan_of_hard_sorting_is_the_expected_sliced_plan(
    learned: bool, temperature: float
) -> None:
    """Whatever tau, along the axes or along learned directions; POT's plan has mass 1."""
    q, k = (x.double() for x in make_qkv()[:2])
    options: dict[str, Any] = {"temperature": temperature, "sorting": "hard", "tau": 1.0}
    attention = with_directions(**options) if learned else EspformerAttention(**options)
    plan = attention.plan(q, k).detach()
    ones = torch.ones_like(plan[..., 0])
    torch.testing.assert_close(plan.sum(dim=-1), ones)
    torch.testing.assert_close(plan.sum(dim=-2), ones)
    for b, h in np.ndindex(plan.shape[:2]):
        directions = attention.direction[h].detach() if learned else None
        expected = weighted_by_hand(q[b, h], k[b, h], temperature, directions)
        torch.testing.assert_close(plan[b, h], expected, rtol=1e-6, atol=1e-7)


@temperatures
def test_plan_along_learned_slices_is_that_of_pot_as_a_whole(temperature: float) -> None:
    """With n = m a power of two, POT's own weights of slices are right."""
    q, k = (normal(1, HEADS, 8, HEAD_DIM, seed=seed).double() for seed in (0, 1))
    attention = with_directions(temperature=temperature, sorting="hard")
    plan = attention.plan(q, k).detach()
    for h in range(HEADS):
        problem = axes_and_points(q[0, h], k[0, h], attention.direction[h].detach())
        expected, _ = ot.expected_sliced_plan(**problem, beta=8 * temperature)
        torch.testing.assert_close(plan[0, h], torch.from_numpy(8 * expected))


EACH_SORTING = pytest.mark.parametrize("sorting", ["soft", "hard"])
EACH_SLICING = pytest.mark.parametrize("learned", [False, True])


@EACH_SORTING
@EACH_SLICING
def test_padding_equals_cutting_in_outputs_and_gradients(learned: bool, sorting: str) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "tau": 0.05, "sorting": sorting}
    attention = with_directions(**options) if learned else EspformerAttention(**options)
    parameters = list(attention.parameters())
    leaves = [x.double().requires_grad_() for x in make_qkv()]
    out = attention(*leaves, key_padding_mask=MASK)
    found = torch.autograd.grad(out.square().sum(), leaves + parameters)
    alone = []
    for b, valid in enumerate(~MASK):
        part = attention(*(x[b : b + 1, :, valid] for x in leaves))
        torch.testing.assert_close(out[b : b + 1, :, valid], part)
        alone.append(part.square().sum())
    wanted = torch.autograd.grad(torch.stack(alone).sum(), leaves + parameters)
    for gradient, other in zip(found, wanted, strict=True):
        assert gradient.any()
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-10)


def test_padded_tokens_are_no_atoms_along_learned_slices() -> None:
    q, k, _ = (x.double() for x in make_qkv())
    attention = with_directions(temperature=1.0, sorting="hard")
    plan = attention.plan(q, k, key_padding_mask=MASK).detach()
    for (b, valid), h in itertools.product(enumerate(~MASK), range(HEADS)):
        directions = attention.direction[h].detach()
        expected = weighted_by_hand(q[b, h, valid], k[b, h, valid], 1.0, directions)
        found = plan[b, h, valid][:, valid]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@EACH_SLICING
@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, True, False, False]])])
def test_gradient_of_soft_sorts_is_that_of_finite_differences(
    mask: Tensor | None, learned: bool
) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "tau": 0.5}
    attention = with_directions(3, **options) if learned else EspformerAttention(**options)
    names = [name for name, _ in attention.named_parameters()]
    leaves = [x[:1, :, :5].double().requires_grad_() for x in make_qkv()]

    def output(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(attention, given, (q, k, v), {"key_padding_mask": mask})

    weights = [x.detach().clone().requires_grad_() for x in attention.parameters()]
    assert torch.autograd.gradcheck(output, (*leaves, *weights))


def test_hard_sorting_has_exact_sums_over_the_valid_tokens() -> None:
    q, k, _ = (x.double() for x in make_qkv())
    plan = EspformerAttention(sorting="hard").plan(q, k, key_padding_mask=MASK)
    valid = (~MASK).double()[:, None].expand(plan.shape[:3])
    torch.testing.assert_close(plan.sum(dim=-1), valid)
    torch.testing.assert_close(plan.sum(dim=-2), valid)
    for b, some in enumerate(~MASK):
        alone = EspformerAttention(sorting="hard").plan(
            q[b : b + 1, :, some], k[b : b + 1, :, some]
        )
        torch.testing.assert_close(plan[b : b + 1, :, some][..., some], alone)


def test_directions_are_parameters_of_the_layer() -> None:
    attention = with_directions(slices=3)
    assert {name: tuple(x.shape) for name, x in attention.state_dict().items()} == {
        "direction": (HEADS, 3, HEAD_DIM)
    }
    assert not EspformerAttention().state_dict()


def in_one_piece(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: float,
    tau: float,
    sorting: str = "soft",
    theta: Tensor | None = None,
) -> Tensor:
    """Compute the formulas for all slices at once, `[B, H, L, N, N]`, for n = m."""
    x, y = (t * t.shape[3] ** -0.5 for t in (q, k))
    theta = torch.eye(q.shape[3]).double() if theta is None else theta
    theta = theta / theta.norm(dim=-1, keepdim=True)

    def sorted_by(s: Tensor) -> Tensor:
        ranked = s.sort(dim=-1, descending=True)
        X = -((ranked.values[..., :, None] - s[..., None, :]) ** 2) / tau
        P = X.softmax(dim=-1)
        exact = F.one_hot(ranked.indices, s.shape[-1]).to(P.dtype)
        return P if sorting == "soft" else exact + P - P.detach()

    P, R = (sorted_by((s @ theta.mT).mT) for s in (x, y))
    G = P.transpose(-1, -2) @ R
    distances = (x[:, :, :, None] - y[:, :, None]).square().sum(dim=-1).sqrt()
    w = (-temperature * (distances[:, :, None] * G).sum(dim=(-1, -2))).softmax(dim=-1)
    return (w[..., None, None] * G).sum(dim=2) @ v


@pytest.mark.parametrize("at_once", [1, 3 * 7 * 7, 2**16])
@pytest.mark.parametrize("sorting", ["soft", "hard"])
@pytest.mark.parametrize("learned", [False, True])
def test_output_and_gradients_are_those_of_the_formulas(
    learned: bool, sorting: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result does not depend on how many of the slices are computed at once."""
    monkeypatch.setattr("asap_exp.ops.reference.espformer.AT_ONCE", at_once)
    leaves = [x.double().requires_grad_() for x in make_qkv()]
    options: dict[str, Any] = {"temperature": 0.5, "tau": 0.05, "sorting": sorting}
    q, k, v = leaves
    attention = with_directions(**options) if learned else EspformerAttention(**options)
    leaves += attention.parameters()
    expected = in_one_piece(q, k, v, **options, theta=leaves[3] if learned else None)
    out = attention(q, k, v)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(out.square().sum(), leaves)
    for gradient, other in zip(
        found, torch.autograd.grad(expected.square().sum(), leaves), strict=True
    ):
        assert gradient.any()
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-10)


def test_gradient_is_finite_where_a_query_is_a_key() -> None:
    q = normal(1, 1, 30, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(EspformerAttention()(q, q, q).sum(), q)
    assert gradient.isfinite().all()


@pytest.mark.slow
@EACH_SORTING
def test_training_keeps_no_plan_of_each_slice(
    sorting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 more slices cost less memory than 4 plans; keeping P, R and G of each would cost 72."""

    monkeypatch.setattr("asap_exp.ops.reference.espformer.AT_ONCE", 1)

    def step_memory(width: int) -> float:
        q, k, v = (normal(1, 1, 128, width, seed=seed).requires_grad_() for seed in range(3))
        attention = EspformerAttention(sorting=sorting)
        return peak_memory(
            lambda: torch.autograd.grad(attention(q, k, v).sum(), (q, k, v)), q.device
        )

    plan = 128 * 128 * 4 / 2**20
    assert step_memory(32) - step_memory(8) < 4 * plan


@pytest.mark.slow
@EACH_SORTING
def test_memory_of_learned_slices_is_that_of_plans_whatever_their_number(sorting: str) -> None:
    """64 slices of 256 tokens take less than 16 plans; kept they would take 192 and more."""

    def plans(slices: int) -> float:
        attention = EspformerAttention(slices=slices, sorting=sorting)
        MultiHeadAttention(16, 1, attend=attention)
        q, k, v = (normal(1, 1, 256, 16, seed=seed).requires_grad_() for seed in range(3))
        memory = peak_memory(lambda: attention(q, k, v).sum().backward(), q.device)
        return memory / (256 * 256 * 4 / 2**20)

    few, many = plans(4), plans(64)
    assert many < few + 2
    assert many < 16


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("tau", 0.0, "tau must be finite and > 0, got 0.0"),
        ("temperature", -1.0, "temperature must be finite and >= 0, got -1.0"),
        ("temperature", "much", "temperature must be a number, got 'much'"),
        ("sorting", "firm", "sorting must be one of soft, hard, got 'firm'"),
        ("slices", -1, "slices must be at least 0, got -1"),
    ],
)
def test_option_out_of_range_is_refused(option: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=f"attention=espformer: {words}"):
        build_attention({"name": "espformer", option: value})
