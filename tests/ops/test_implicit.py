"""The implicit gradient of Sinkhorn attention: against a dense solve, differences and updates."""

import pytest
import torch
from torch import Tensor

from asap_exp import ops
from asap_exp.ops.reference.implicit import conjugate_gradients, implicit_gradient
from tests.ops import plain
from tests.ops.inputs import (
    TEACHER,
    Inputs,
    assert_close64,
    make_cotangents,
    make_inputs,
    relative_rms,
)
from tests.ops.test_gradients import OPTIONS
from tests.ops.test_padding import MASK

SHAPES = [(6, 6), (5, 9), (9, 4)]
CONVERGED = 1000
"""Updates after which duals of these inputs are at rest in float64."""
every_shape = pytest.mark.parametrize(("queries", "keys"), SHAPES)


def cotangents_of(inputs: Inputs) -> tuple[Tensor, ...]:
    return make_cotangents(TEACHER(inputs))


def gradient(inputs: Inputs, **options) -> dict[str, Tensor]:
    return TEACHER.run(inputs, cotangents_of(inputs), **(OPTIONS | options))[1]


def hard(inputs: Inputs) -> Inputs:
    """Make plans that take some hundred updates to converge."""
    return inputs.map_tokens(lambda x: 1.3 * x)


@pytest.mark.slow
@every_shape
def test_converged_plan_has_the_gradient_of_many_updates(queries, keys):
    inputs = make_inputs(queries=queries, keys=keys)
    unrolled = gradient(inputs, num_iters=CONVERGED)
    found = gradient(inputs, num_iters=CONVERGED, implicit_steps=keys)
    for name, expected in unrolled.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@every_shape
def test_converged_plan_has_the_gradient_of_finite_differences(queries, keys):
    inputs = make_inputs(batch=1, heads=1, queries=queries, keys=keys, head_dim=2, value_dim=2)

    def attention(q, k, v):
        return ops.sinkhorn_attention(q, k, v, num_iters=CONVERGED, implicit_steps=keys, **OPTIONS)

    sources = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    assert torch.autograd.gradcheck(attention, sources, atol=1e-7, rtol=1e-5)


@every_shape
@pytest.mark.parametrize("num_iters", [1, 2, 20])
def test_gradient_solves_for_a_plan_whose_marginals_stay(queries, keys, num_iters):
    """By a dense solve for both duals, after any number of updates."""
    inputs = make_inputs(queries=queries, keys=keys)
    (cotangent,) = cotangents_of(inputs)
    S = plain.logits(inputs.q, inputs.k, **OPTIONS)
    A = plain.sinkhorn_plan(S, num_iters)
    dA = cotangent @ inputs.v.mT
    rows, columns = (torch.diag_embed(A.sum(dim=d)) for d in (-1, -2))
    system = torch.cat([torch.cat([rows, A], dim=-1), torch.cat([A.mT, columns], dim=-1)], dim=-2)
    sums = torch.cat([(A * dA).sum(dim=-1), (A * dA).sum(dim=-2)], dim=-1)
    a, b = (torch.linalg.pinv(system) @ sums[..., None]).squeeze(-1).split([queries, keys], dim=-1)
    dS = A * (dA - a[..., :, None] - b[..., None, :])
    slope = OPTIONS["scale"] / OPTIONS["eps"]
    expected = {"q": slope * dS @ inputs.k, "k": slope * dS.mT @ inputs.q, "v": A.mT @ cotangent}
    found = gradient(inputs, num_iters=num_iters, implicit_steps=keys)
    for name in TEACHER.reads:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-10)


def test_rows_and_columns_of_the_gradient_sum_to_zero():
    A = plain.sinkhorn_plan(make_inputs(queries=8).q @ make_inputs(queries=8).k.mT, 3)
    (dA,) = make_cotangents((A,))
    dS = implicit_gradient(A, dA, 8)
    assert A.sum(dim=-2).sub(1).abs().max() > 1e-3, "columns do not meet their marginal"
    assert dS.sum(dim=-1).abs().max() < 1e-12
    assert dS.sum(dim=-2).abs().max() < 1e-12
    assert dS.abs().max() > 0.1


def test_what_has_no_part_in_the_plan_changes_no_gradient():
    """Such as a constant in a row or in a column of the gradient for the plan."""
    A = plain.sinkhorn_plan(make_inputs(queries=8).q @ make_inputs(queries=8).k.mT, 3)
    dA, of_rows, of_columns = make_cotangents((A, A[..., :1], A[..., :1, :]))
    expected = implicit_gradient(A, dA, 8)
    assert_close64(implicit_gradient(A, dA + of_rows + of_columns, 8), expected, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_last_updates_are_as_many_terms_of_its_neumann_series(steps):
    """At a fixed point; as many steps of conjugate gradients are nearer."""
    inputs = hard(make_inputs(queries=9))
    exact = gradient(inputs, num_iters=CONVERGED, implicit_steps=9)["q"]
    (cotangent,) = cotangents_of(inputs)
    A = plain.sinkhorn_plan(plain.logits(inputs.q, inputs.k, **OPTIONS), CONVERGED)
    E = A * (cotangent @ inputs.v.mT)
    E = E - A * E.sum(dim=-1, keepdim=True)
    gamma = E.sum(dim=-2)[..., None]
    terms = [torch.linalg.matrix_power(A.mT @ A, t) @ gamma for t in range(steps)]
    b = sum(terms)
    dS = E - A * (b.mT - A @ sum(terms[:-1], torch.zeros_like(b)))
    neumann = OPTIONS["scale"] / OPTIONS["eps"] * dS @ inputs.k
    last = gradient(inputs, num_iters=CONVERGED, gradient_updates=steps)["q"]
    torch.testing.assert_close(last, neumann, rtol=1e-9, atol=1e-10)
    solved = gradient(inputs, num_iters=CONVERGED, implicit_steps=steps)["q"]
    assert 0 < relative_rms(solved, exact) < relative_rms(last, exact)


def test_more_steps_are_nearer_until_the_system_is_solved():
    inputs = hard(make_inputs(queries=24, head_dim=8))
    exact = gradient(inputs, num_iters=CONVERGED, implicit_steps=60)["q"]
    errors = [
        relative_rms(gradient(inputs, num_iters=CONVERGED, implicit_steps=steps)["q"], exact)
        for steps in (1, 2, 4, 8, 16, 40)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9


def test_where_marginals_are_not_met_it_is_another_gradient():
    inputs = hard(make_inputs(queries=9))
    unrolled, found = (gradient(inputs, num_iters=2, **o)["q"] for o in ({}, {"implicit_steps": 9}))
    assert relative_rms(found, unrolled) > 0.05


def test_output_is_that_of_the_updates_to_the_bit():
    inputs = make_inputs()
    assert torch.equal(TEACHER(inputs, implicit_steps=3)[0], TEACHER(inputs)[0])


def test_padding_takes_no_part():
    inputs = make_inputs(batch=len(MASK), queries=MASK.shape[1])
    options = {"num_iters": 3, "implicit_steps": 2}
    cotangents = cotangents_of(inputs)
    spoilt = inputs.map_tokens(
        lambda x: x.masked_fill(MASK.view(len(MASK), 1, -1, *(1,) * (x.dim() - 3)), torch.nan)
    )
    found = TEACHER.run(spoilt, cotangents, key_padding_mask=MASK, **options)[1]
    for b, padded in enumerate(MASK):
        valid = ~padded
        alone = Inputs(
            **{
                name: x[b : b + 1, :, valid] if name in ("q", "k", "v", "row_dual") else x
                for name, x in vars(inputs).items()
            }
        )
        expected = TEACHER.run(alone, (cotangents[0][b : b + 1, :, valid],), **options)[1]
        for name in TEACHER.reads:
            assert not found[name][b, :, padded].any()
            assert_close64(found[name][b : b + 1, :, valid], expected[name])


def test_float32_stays_finite_with_logits_of_hundreds():
    """Plans that are nearly permutations make the system nearly singular."""
    inputs = make_inputs(queries=24, head_dim=8, seed=1).map(lambda x: (6.0 * x).float())
    for steps in (1, 5, 200):
        found = TEACHER.run(inputs, num_iters=20, implicit_steps=steps)[1]
        for name in TEACHER.reads:
            assert found[name].isfinite().all()


def test_a_solved_system_stays_solved():
    A = torch.full((1, 4, 4), 0.25)
    gamma = torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    solved = conjugate_gradients(
        lambda b: (A @ b[..., None])[..., 0],
        lambda a: (A.mT @ a[..., None])[..., 0],
        gamma,
        A.sum(dim=-2),
        7,
    )
    torch.testing.assert_close(solved, gamma)
    nothing = torch.zeros_like(gamma)
    assert not conjugate_gradients(lambda b: b, lambda a: a, nothing, nothing, 3).any()


@pytest.mark.slow
def test_second_derivatives_are_those_of_finite_differences():
    inputs = make_inputs(batch=1, heads=1, queries=4, head_dim=2, value_dim=2)

    def attention(q, k):
        v = inputs.v
        return ops.sinkhorn_attention(q, k, v, num_iters=CONVERGED, implicit_steps=4, **OPTIONS)

    sources = [x.requires_grad_() for x in (inputs.q, inputs.k)]
    assert torch.autograd.gradgradcheck(attention, sources, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_per_sample_gradients_are_those_of_each_sample():
    inputs = make_inputs()

    def loss(q, k, v):
        out = ops.sinkhorn_attention(
            q[None], k[None], v[None], implicit_steps=3, backend="reference"
        )
        return out.square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(inputs.q, inputs.k, inputs.v)
    q = inputs.q.clone().requires_grad_()
    total = sum(loss(q[b], inputs.k[b], inputs.v[b]) for b in range(len(q)))
    assert_close64(found, torch.autograd.grad(total, q)[0])


@pytest.mark.parametrize("factor", [1e-30, 1e20])
def test_gradient_scales_with_the_loss_in_float32(factor):
    """Though the squares of such numbers are 0, or infinite."""
    inputs = make_inputs(queries=9).map(lambda x: x.float())
    (cotangent,) = cotangents_of(inputs)
    options = OPTIONS | {"num_iters": 5, "implicit_steps": 4}
    expected = TEACHER.run(inputs, (cotangent,), **options)[1]
    found = TEACHER.run(inputs, (cotangent * factor,), **options)[1]
    for name in TEACHER.reads:
        torch.testing.assert_close(found[name] / factor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2, 11])
def test_steps_after_the_system_is_solved_change_nothing_in_float32(seed):
    """Four keys are solved for in three steps, second derivatives too."""
    torch.manual_seed(seed)
    q, k, v, weight, direction = torch.randn(5, 1, 1, 4, 4)

    def derivatives(steps: int) -> tuple[Tensor, Tensor]:
        x = q.clone().requires_grad_()
        out = ops.sinkhorn_attention(x, k, v, implicit_steps=steps, backend="reference")
        (first,) = torch.autograd.grad((out * weight).sum(), x, create_graph=True)
        return first.detach(), torch.autograd.grad((first * direction).sum(), x)[0]

    expected = derivatives(3)
    for steps in (4, 16, 40):
        for found, solved in zip(derivatives(steps), expected, strict=True):
            assert relative_rms(found, solved) < 1e-5
