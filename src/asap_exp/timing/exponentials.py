"""Exponentials per second of the device, a ceiling like matrix products and memory traffic."""

import torch
import triton
import triton.language as tl

from asap_exp.ops.backend import EVERY_LAUNCH, INTERPRETED

BLOCK = 1024
PROGRAMS, ROUNDS = (1, 2) if INTERPRETED else (8192, 1024)
"""Enough to fill any GPU, for about two milliseconds on an H100."""


@triton.jit
def exponentials_kernel(out, rounds, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Apply x = 2^-x `rounds` times; x stays in 0.5..1, and the loop does nothing else."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = (i % BLOCK).to(tl.float32) / BLOCK
    for _ in range(rounds):
        x = tl.exp2(-x)
    tl.store(out + i, x)


def take_exponentials(device: torch.device) -> torch.Tensor:
    """Compute `count()` exponentials and return the last ones, float32 `[PROGRAMS * BLOCK]`."""
    out = torch.empty(PROGRAMS * BLOCK, device=device)
    exponentials_kernel[(PROGRAMS,)](out, ROUNDS, BLOCK=BLOCK, num_warps=4, **EVERY_LAUNCH)
    return out


def count() -> int:
    """Return the number of exponentials of one `take_exponentials`."""
    return PROGRAMS * BLOCK * ROUNDS
