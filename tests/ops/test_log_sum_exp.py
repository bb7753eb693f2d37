"""Log-sum-exp that avoids subnormal numbers, against PyTorch's."""

import pytest
import torch
from torch import Tensor

from asap_exp.ops.reference.log_sum_exp import log_sum_exp


def wide(dtype: torch.dtype) -> Tensor:
    """Logits of several hundred, some of them absent."""
    generator = torch.Generator().manual_seed(0)
    x = 200 * torch.randn(3, 24, 40, generator=generator, dtype=torch.float64)
    x[0, :, 3] = x[1, 5, :30] = -torch.inf
    return x.to(dtype)


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_those_of_pytorch(dtype, dim):
    x = wide(dtype)
    x[..., 3] = 0  # PyTorch's gradient of a column that is absent altogether is NaN
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours_out, theirs_out = log_sum_exp(ours, dim), torch.logsumexp(theirs, dim)
    assert torch.equal(ours_out, theirs_out)
    weights = torch.linspace(-1, 1, ours_out.numel(), dtype=dtype).view_as(ours_out)
    (ours_out * weights).sum().backward()
    (theirs_out * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-25)


def test_gradients_have_no_subnormal_numbers():
    """These make a training on a CPU several times slower once its logits have grown."""
    x = wide(torch.float32).requires_grad_()
    log_sum_exp(x, -1).sum().backward()
    smallest = x.grad[x.grad != 0].abs().min().item()
    assert smallest > torch.finfo(torch.float32).tiny


def test_second_derivatives_are_right():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_sum_exp, (x, -2))
    assert torch.autograd.gradgradcheck(log_sum_exp, (x, -2))


def test_it_can_be_mapped():
    x = wide(torch.float64)
    mapped = torch.func.vmap(lambda each: log_sum_exp(each, -1))(x)
    assert torch.equal(mapped, log_sum_exp(x, -1))
