"""Which implementation a call runs on."""

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "triton")


def resolve_backend(backend: str, q: Tensor) -> str:
    """The name of the implementation to run: today always `reference`.

    Raises ValueError for an unknown name and RuntimeError where `triton` cannot run, with why.
    """
    check_backend(backend, "" if q.is_cuda else f", and q is on {q.device}, not on a CUDA device")
    return "reference"


def check_backend(backend: str, also: str = "") -> None:
    """Raises where `backend` is unknown or cannot run anywhere; `also` is a further reason."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "triton":
        raise RuntimeError(
            f"backend='triton' cannot run: this version has no fused kernels{also}. "
            "Use backend='auto' or backend='reference'."
        )


def full_precision(q: Tensor) -> torch.autocast:
    """Switches autocast off: the operators choose their own dtypes."""
    return torch.autocast(q.device.type, enabled=False)
