"""Log-sum-exp and softmax that stay fast on a CPU, whatever the spread of the logits."""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.transforms import forward_mode

FLOOR, LEAST = -60.0, 1e-26
"""Exponents below `FLOOR` are raised to it, and weights below `LEAST` are 0.

Beside the largest term, 1, float32 has lost them anyway. On a CPU a float32 exponential below -87
takes some 50 times as long, and arithmetic on numbers below 1e-38 several times as long. On a GPU,
in float64 and for derivatives that go forward, the functions are PyTorch's own.
"""


def slows_down(x: Tensor) -> bool:
    """Return True if exponentials of `x` take longer where they underflow, as they will."""
    return x.dtype == torch.float32 and not x.is_cuda and not forward_mode()


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """Return log sum exp of finite `x` (single terms may be -inf) over `dim`."""
    return LogSumExp.apply(x, dim) if slows_down(x) else torch.logsumexp(x, dim)


def softmax(x: Tensor) -> Tensor:
    """Return the softmax of finite `x` (single terms may be -inf) over its last dimension."""
    return Softmax.apply(x) if slows_down(x) else torch.softmax(x, -1)


class LogSumExp(torch.autograd.Function):
    """Autograd function of `log_sum_exp`; keeps its argument alone, and computes the rest again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        largest = x.amax(dim, keepdim=True)
        total = (x - largest).clamp(min=FLOOR).exp_().sum(dim, keepdim=True)
        return total.log_().add_(largest).squeeze(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        x, ctx.dim = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, result = ctx.saved_tensors
        weights = (x - result.unsqueeze(ctx.dim)).clamp(min=FLOOR).exp()
        weights = torch.threshold(weights, LEAST, 0.0)
        return weights * gradient.unsqueeze(ctx.dim), None


class Softmax(torch.autograd.Function):
    """Autograd function of `softmax`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        least = x.amax(-1, keepdim=True) + FLOOR
        return torch.threshold(torch.softmax(torch.maximum(x, least), -1), LEAST, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
