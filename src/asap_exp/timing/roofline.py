"""Ceilings of the device, measured in the same run as the methods compared with them."""

from contextlib import nullcontext
from typing import Any

import torch

from asap_exp.ops.backend import fused
from asap_exp.timing.latency import Call, repeats, seconds, warm_up

SIZES = {"cuda": (8192, 2**30), "cpu": (512, 2**26)}
"""Side of a square matrix product, and bytes of a copy."""
ROUNDS = 10


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Measure TFLOP/s of a product in `dtype`, GB/s of a copy, and exponentials per second.

    The bandwidth counts bytes read and written.
    """
    side, size = SIZES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        product_seconds = shortest(lambda: a @ b, device)
        copy_seconds = shortest(lambda: target.copy_(source), device)
    return {
        "product_side": side,
        "product_tflops": 2 * side**3 / product_seconds / 1e12,
        "copy_bytes": size,
        "copy_gb_per_second": 2 * size / copy_seconds / 1e9,
        "exponentials_per_second": exponential_rate(device),
    }


def shortest(call: Call, device: torch.device) -> float:
    """Return the shortest time in seconds, since disturbances only ever lengthen a measurement."""
    times = repeats(warm_up(lambda: nullcontext(call), device))
    return min(seconds(call, device, times) for _ in range(ROUNDS))


def exponential_rate(device: torch.device) -> float | None:
    """Return float32 exponentials per second in registers; None on a CPU or without Triton."""
    if device.type != "cuda" or fused is None:
        return None
    from asap_exp.timing.exponentials import count, take_exponentials  # needs Triton

    return count() / shortest(lambda: take_exponentials(device), device)
