"""Which implementation a call runs on."""

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from asap_exp.ops import reference
from asap_exp.ops.checks import gradient_needed

try:
    from asap_exp.ops import kernels as fused
    from asap_exp.ops.kernels.tiles import INTERPRETED
except ImportError:  # torch on this platform comes without Triton
    fused, INTERPRETED = None, False  # type: ignore[assignment]

BACKENDS = ("auto", "reference", "triton")
FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST_HEAD = 128
SUPPORTED_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities with 160 KiB or more of shared memory for a block."""


def resolve(
    backend: str, q: Tensor, v: Tensor | None = None, *, no_gradient_of: tuple = ()
) -> ModuleType:
    """The package of operators to run: `reference`, or `triton`, which `auto` takes where it can.

    `no_gradient_of` are the inputs whose gradient the fused operator lacks: where one is needed,
    `auto` is the reference. ValueError for an unknown name; RuntimeError where `triton` cannot
    run, with why.
    """
    check_backend(backend)
    if backend == "reference" or q.is_meta:  # the shape alone is asked for, and it is the same
        return reference
    obstacle = why_not_fused(q, v, no_gradient_of, interpreted=backend == "triton" and INTERPRETED)
    if obstacle is None:
        return fused
    if backend == "auto":
        return reference
    raise RuntimeError(
        f"backend='triton' cannot run: {obstacle}. Use backend='auto' or backend='reference'."
    )


def chosen(backend: str, q: Tensor) -> str:
    """The name of the implementation that a call with these queries runs on."""
    return "reference" if resolve(backend, q) is reference else "triton"


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def why_not_fused(
    q: Tensor, v: Tensor | None, no_gradient_of: tuple, *, interpreted: bool
) -> str | None:
    """Why the fused kernels cannot take these inputs, or None if they can."""
    if fused is None:
        return "Triton is not installed"
    if not (q.is_cuda or interpreted):
        return f"q is on {q.device}, not on a CUDA device"
    if q.is_cuda and not (torch.cuda.is_available() and capability(q) in SUPPORTED_CAPABILITIES):
        return "the fused kernels need the shared memory of an A100, H100, H200, B200 or B300"
    for name, x in (("q", q), ("v", v)):
        if x is not None and x.dtype not in FUSED_DTYPES:
            return f"{name} is {x.dtype}, and the fused kernels compute in float32"
        if x is not None and not 0 < x.shape[3] <= WIDEST_HEAD:
            return f"{name} has width {x.shape[3]}, and the fused kernels take 1 to {WIDEST_HEAD}"
    if gradient_needed(*no_gradient_of):
        return "a gradient is needed that has no fused kernel"
    return None


def capability(q: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(q.device)


def full_precision(q: Tensor) -> AbstractContextManager:
    """Switches autocast off: the operators choose their own dtypes."""
    if not torch.amp.is_autocast_available(q.device.type):  # on the meta device
        return nullcontext()
    return torch.autocast(q.device.type, enabled=False)
