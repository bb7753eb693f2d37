"""The properties of a call that decide its route: shapes, dtypes and the GPU, without tensors."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

PROGRAMS_PER_MULTIPROCESSOR = 4
"""Programs that fit on one multiprocessor (4 warps, 128 registers per thread).

Two or three if a program needs more registers: refined, wide or float32.
"""


SUPPORTED_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities with at least 160 KiB of shared memory per block."""


def capability(x: Tensor) -> tuple[int, int] | None:
    """Return the compute capability of the GPU that holds `x`; None if there is none."""
    if x.is_cuda and torch.cuda.is_available():
        return torch.cuda.get_device_capability(x.device)
    return None


class Device(NamedTuple):
    """Properties of a device that routes depend on."""

    capability: tuple[int, int] | None = None
    """Compute capability; None in Triton's interpreter, where every kernel runs."""
    multiprocessors: int = 1


INTERPRETER = Device()


class Call(NamedTuple):
    """A call of an operator, as the refusals of its routes read it.

    It is hashable, so that the choice of a route is cached for identical calls.
    """

    n: int
    """Queries."""
    m: int
    """Keys."""
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    """Dtype of q and k."""
    value_dtype: torch.dtype
    num_iters: int = 1
    constant_logits: bool = False
    """True if scale / eps is 0."""
    padded: bool = False
    keeps_duals: bool = False
    """True if the duals of all updates are kept, for a gradient or as a result."""
    gradient: bool = False
    """True if a gradient is needed."""
    slices: int = 0
    refine: int = 0
    relaxed: bool = False
    logit_features: bool = False
    one_wave: bool = True
    """True if the programs of (nearly) all heads fit on the GPU at once. Not read while a model is
    traced, so that no trace depends on the batch size."""
    capability: tuple[int, int] | None = None
    """Compute capability; None in Triton's interpreter, where every kernel runs."""
    other_features: tuple[str, ...] = ()
    """Weights of features beside those of queries, samples and logits."""
    one_pass: bool = False
    """True for coarse attention, or ASAP, without a column step."""
    subset: int = 0
    """Tokens of the subset of coarse attention."""
    gradient_updates: int | None = None
    """Last updates that the gradient goes through; None for all of them."""
    implicit_steps: int | None = None
    """Steps of conjugate gradients of the implicit gradient; None for that through the updates."""

    @property
    def longest(self) -> int:
        return max(self.n, self.m)

    @property
    def widest(self) -> int:
        return max(self.head_dim, self.value_dim)

    @property
    def has_float32(self) -> bool:
        return torch.float32 in (self.dtype, self.value_dtype)


def one_wave(programs: int, device: Device) -> bool:
    """Return whether (nearly) all programs fit on the GPU at once, even with more warps each.

    Latency per program then dominates, and with it the code size: instructions that a model's other
    kernels evicted from the cache are fetched again line by line. Such a grid therefore gets more
    warps, with fewer values and less code per thread.
    """
    return programs <= PROGRAMS_PER_MULTIPROCESSOR * device.multiprocessors


_pretended: Device | None = None


def device_of(x: Tensor) -> Device:
    """Return the device of `x`, or the one that `as_if` simulates."""
    if _pretended is not None:
        return _pretended
    if not x.is_cuda:
        return INTERPRETER
    # Dynamo would trace through the cache, and warn that it does.
    read = cuda_device if torch.compiler.is_compiling() else _remembered_device
    return read(x.get_device())


def cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


_remembered_device = functools.cache(cuda_device)


@contextmanager
def as_if(device: Device) -> Iterator[None]:
    """Choose routes and warps within the context as on this device, wherever the tensors are.

    Tests use it to check on any machine what another GPU, or a larger grid, would run.
    """
    global _pretended
    before, _pretended = _pretended, device
    try:
        yield
    finally:
        _pretended = before
