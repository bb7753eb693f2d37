"""What is too large for this machine is refused before it is asked for."""

import math
import os
from collections.abc import Sequence

from asap_exp.core.errors import UserError


def check_fits(key: str, shape: Sequence[int]) -> None:
    """Raises UserError where uint8 samples of this shape are more than the machine's memory."""
    wanted, there = math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there:
        raise UserError(
            f"{key} makes {shape[0]} samples of {wanted / 2**30:,.1f} GiB, and this machine has "
            f"{there / 2**30:,.1f} GiB of memory; choose a smaller one"
        )
