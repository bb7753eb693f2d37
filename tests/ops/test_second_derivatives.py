"""Second derivatives, and those of torch.func, of every operator with backend="reference"."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from asap_exp import ops
from tests.ops.inputs import OPERATORS, Inputs, Operator, make_cotangents, make_inputs

pytestmark = pytest.mark.slow

MASK = torch.tensor([[False, True, False, False], [False, False, False, True]])
SUBSET = ops.Subset(torch.tensor([[[0, 2]]]), torch.full((1, 1, 2), 1.5, dtype=torch.float64))


def sliced(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, **options: Any) -> Tensor:
    return ops.espformer_attention(q, k, v, theta=theta, tau=0.5, **options)


def with_coarse(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, weight: Tensor, **options
) -> Tensor:
    coarse = ops.CoarseSettings(2, "farthest", "voronoi", num_iters=3)
    of_coarse = weight.new_ones(weight.shape[0], 1)
    map = ops.SlicedMap(theta, weight, coarse_weight=of_coarse, coarse=coarse)
    return ops.map_attention(q, k, v, map, **options)


def made(function: Callable, reads: str, **fixed: Any) -> Operator:
    return Operator(function, tuple(reads.split()), ((2,),), fixed)


TRUE = OPERATORS | {
    "espformer_attention": made(ops.espformer_attention, "q k v", tau=0.5),
    "espformer_attention, slices": made(sliced, "q k v theta"),
    "espformer_plan": made(ops.espformer_plan, "q k", tau=0.5),
    "coarse_attention": made(ops.coarse_attention, "q k v", subset=SUBSET, num_iters=3, refine=1),
    "coarse_attention, one pass": made(
        ops.coarse_attention, "q k v", subset=SUBSET, num_iters=3, one_pass=True
    ),
    "coarse_duals": made(ops.coarse_duals, "q k", subset=SUBSET, num_iters=3),
    "coarse_plan": made(ops.coarse_plan, "q k", subset=SUBSET, num_iters=3),
    "map_attention, coarse": made(with_coarse, "q k v theta weight"),
    "one_pass_plan": made(ops.one_pass_plan, "q k row_dual"),
}
LAST = {"num_iters": 4, "gradient_updates": 2}
IMPLICIT = {"num_iters": 4, "implicit_steps": 2}
CHOSEN = {
    "sinkhorn_attention, last updates": made(ops.sinkhorn_attention, "q k v", **LAST),
    "espformer_attention, hard": made(ops.espformer_attention, "q k v", tau=0.5, hard=True),
}
"""Their gradient is not that of finite differences, by choice."""
BACKWARD_ALONE = {
    "sinkhorn_attention, implicit": made(ops.sinkhorn_attention, "q k v", **IMPLICIT),
    "coarse_attention, implicit": made(
        ops.coarse_attention, "q k v", subset=SUBSET, num_iters=3, implicit_steps=2
    ),
}

FORWARD = TRUE | CHOSEN
padded_or_not = pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])


def small(dtype: torch.dtype = torch.float64) -> Inputs:
    return make_inputs(batch=2, heads=1, queries=4, head_dim=2, value_dim=2, slices=2, dtype=dtype)


def function_of(operator: Operator, inputs: Inputs, mask: Tensor | None) -> Callable:
    options: dict[str, Any] = {"key_padding_mask": mask}
    if operator.function is not ops.query_features:
        options["backend"] = "reference"

    def function(*sources: Tensor) -> tuple[Tensor, ...]:
        given = replace(inputs, **dict(zip(operator.reads, sources, strict=True)))
        return operator(given, **options)

    return function


def number_of(function: Callable) -> Callable:
    return lambda *sources: sum(x.sin().sum() for x in function(*sources))


def sources_of(operator: Operator, inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(getattr(inputs, name) for name in operator.reads)


@padded_or_not
@pytest.mark.parametrize("operator", TRUE.values(), ids=TRUE)
def test_second_derivatives_are_those_of_finite_differences(operator, mask):
    inputs = small()
    sources = [x.requires_grad_() for x in sources_of(operator, inputs)]
    function = function_of(operator, inputs, mask)
    assert torch.autograd.gradgradcheck(function, sources, atol=1e-5, rtol=1e-4, fast_mode=True)


@padded_or_not
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("operator", FORWARD.values(), ids=FORWARD)
def test_derivative_forward_is_that_backward(operator, dtype, mask):
    inputs = small(dtype)
    sources = sources_of(operator, inputs)
    directions = make_cotangents(sources)
    function = number_of(function_of(operator, inputs, mask))
    found = torch.func.jvp(function, sources, directions)[1]
    leaves = [x.clone().requires_grad_() for x in sources]
    gradients = torch.autograd.grad(function(*leaves), leaves, materialize_grads=True)
    expected = sum((x * y).sum() for x, y in zip(gradients, directions, strict=True))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("operator", FORWARD.values(), ids=FORWARD)
def test_hessian_is_the_gradient_of_the_gradient(operator):
    inputs = small()
    sources = sources_of(operator, inputs)
    function = number_of(function_of(operator, inputs, MASK))
    twice = torch.func.jacrev(torch.func.jacrev(function))(*sources)
    torch.testing.assert_close(torch.func.hessian(function)(*sources), twice)


@pytest.mark.parametrize("operator", BACKWARD_ALONE.values(), ids=BACKWARD_ALONE)
def test_implicit_gradient_has_second_derivatives_backward_alone(operator):
    inputs = small()
    sources = sources_of(operator, inputs)
    function = number_of(function_of(operator, inputs, MASK))
    of_func = torch.func.jacrev(torch.func.jacrev(function))(*sources)
    rows = torch.autograd.functional.hessian(function, sources)[0][0]
    torch.testing.assert_close(of_func, rows)
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(function, sources, make_cotangents(sources))
