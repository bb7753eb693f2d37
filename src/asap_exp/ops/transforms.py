"""Whether a derivative is taken by other means than autograd's backward pass."""

import torch
from torch.autograd import forward_ad


def forward_mode() -> bool:
    """Return True while derivatives go forward with the values, as in `torch.func.jvp`."""
    return forward_ad._current_level >= 0


def transformed() -> bool:
    """Return True there and inside any other function of `torch.func`, which allows no hooks."""
    if torch.compiler.is_compiling():
        return False
    return forward_mode() or torch._C._functorch.peek_interpreter_stack() is not None
