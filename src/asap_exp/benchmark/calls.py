"""The timed call: a forward pass, or a forward and a backward pass."""

import torch
from torch import Tensor

from asap_exp.benchmark.inputs import Inputs
from asap_exp.benchmark.registry import Attend, Unavailable

Results = tuple[Tensor, ...]


def results(attend: Attend, inputs: Inputs) -> Results:
    """Return (out,), or (out, dq, dk, dv) if the inputs have a gradient of the output."""
    if inputs.grad_out is None:
        with torch.no_grad():
            return (attend(*inputs.qkv),)
    out = attend(*inputs.qkv)
    if not out.requires_grad:
        raise Unavailable("it has no gradient")
    gradients = torch.autograd.grad(out, inputs.qkv, inputs.grad_out, materialize_grads=True)
    return (out.detach(), *gradients)
