"""Numbers of tokens, which a graph for inputs of any size keeps as symbols."""

import math

import torch
from torch import Tensor


def as_many(n: int, m: int) -> bool:
    """Return True if both are equal; while a graph is traced, if they are in all its calls."""
    if not torch.compiler.is_compiling():
        return n == m
    # Here, because it brings sympy with it, which a tracer has loaded.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(n == m)


def log_ratio(n: int, m: int, like: Tensor) -> Tensor | float:
    """Return log(n / m), in the dtype of `like` where it is a tensor."""
    if as_many(n, m):
        return 0.0
    if torch.compiler.is_compiling():  # a number would hold for these n and m alone
        return like.new_full((), n / m).log()
    return math.log(n / m)
