"""Log-sum-exp and softmax that avoid subnormal numbers, against PyTorch's."""

from functools import partial

import pytest
import torch
from torch import Tensor

from asap_exp.ops.reference.exponentials import LogSumExp, Softmax, log_sum_exp, softmax

FUNCTIONS = {
    "rows": (
        partial(log_sum_exp, dim=-1),
        partial(torch.logsumexp, dim=-1),
        lambda x: LogSumExp.apply(x, -1),
    ),
    "columns": (
        partial(log_sum_exp, dim=-2),
        partial(torch.logsumexp, dim=-2),
        lambda x: LogSumExp.apply(x, -2),
    ),
    "softmax": (softmax, partial(torch.softmax, dim=-1), Softmax.apply),
}
"""Ours, PyTorch's, and ours whatever the dtype."""

every_function = pytest.mark.parametrize("functions", FUNCTIONS.values(), ids=FUNCTIONS)


def wide(dtype: torch.dtype) -> Tensor:
    """Logits of several hundred, some of them absent."""
    generator = torch.Generator().manual_seed(0)
    x = 200 * torch.randn(3, 24, 40, generator=generator, dtype=torch.float64)
    x[1, 5, :30] = -torch.inf
    return x.to(dtype)


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_those_of_pytorch(dtype, functions):
    results = []
    for function in functions[:2]:
        x = wide(dtype).requires_grad_()
        out = function(x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        (out * weights).sum().backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-15 if dtype == torch.float64 else 1e-7)


@every_function
def test_no_result_or_gradient_is_subnormal(functions):
    """These make a training on a CPU several times slower once its logits have grown."""
    x = wide(torch.float32).requires_grad_()
    out = functions[0](x)
    out[..., 0].sum().backward()
    for tensor in (out, x.grad):
        assert tensor[tensor != 0].abs().min().item() > torch.finfo(torch.float32).tiny


@every_function
def test_second_derivatives_are_right(functions):
    """Of the functions for float32, computed in float64."""
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(functions[2], x)
    assert torch.autograd.gradgradcheck(functions[2], x)


@every_function
def test_they_can_be_mapped(functions):
    x = wide(torch.float32)
    assert torch.equal(torch.func.vmap(functions[0])(x), functions[0](x))
