"""Check that data fits in memory before it is allocated."""

import math
import os
from collections.abc import Sequence

from asap_exp.core.errors import UserError


def check_fits(key: str, shape: Sequence[int]) -> None:
    """Raise UserError if uint8 samples of this shape exceed the machine's memory."""
    wanted, there = math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there:
        raise UserError(
            f"{key} makes {shape[0]} samples of {wanted / 2**30:,.1f} GiB in total, and this "
            f"machine has {there / 2**30:,.1f} GiB of memory; choose a smaller value"
        )
