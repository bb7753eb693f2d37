"""Whether PyTorch may multiply float32 matrices as TF32, which kernels obey too."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from asap_exp.benchmark.registry import Method


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_tf32(method: Method) -> Method:
    """Return the method with TF32 allowed, for inputs in float32; 16-bit inputs have it anyway."""
    operators = {
        name: replace(operator, context=lambda: tf32(True))
        for name, operator in method.operators.items()
    }
    return replace(method, label=f"{method.label}, TF32", operators=operators, tf32=True)
