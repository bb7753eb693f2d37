"""How many exponentials a second the device takes: the ceiling that is not one of products."""

import torch
import triton
import triton.language as tl

from asap_exp.ops.backend import EVERY_LAUNCH, INTERPRETED

BLOCK = 1024
PROGRAMS, ROUNDS = (1, 2) if INTERPRETED else (8192, 1024)
"""As many as fill any GPU, for about two milliseconds on an H100."""


@triton.jit
def exponentials_kernel(out, rounds, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """rounds times x = 2^-x, which stays between 0.5 and 1; nothing else is done in the loop."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = (i % BLOCK).to(tl.float32) / BLOCK
    for _ in range(rounds):
        x = tl.exp2(-x)
    tl.store(out + i, x)


def take_exponentials(device: torch.device) -> torch.Tensor:
    """`count` of them; the last ones, `[PROGRAMS * BLOCK]` float32."""
    out = torch.empty(PROGRAMS * BLOCK, device=device)
    exponentials_kernel[(PROGRAMS,)](out, ROUNDS, BLOCK=BLOCK, num_warps=4, **EVERY_LAUNCH)
    return out


def count() -> int:
    return PROGRAMS * BLOCK * ROUNDS
