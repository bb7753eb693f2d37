"""Check that data fits in memory before it is allocated."""

import math
from collections.abc import Sequence

from asap_exp.core.errors import UserError
from asap_exp.core.memory import available_memory, gib


def check_fits(key: str, shape: Sequence[int]) -> None:
    """Raise UserError if uint8 samples of this shape exceed the memory that is available."""
    wanted, there = math.prod(shape), available_memory()
    if wanted > there:
        raise UserError(
            f"{key} makes {shape[0]} samples of {gib(wanted)} in total, and {gib(there)} of memory "
            "are available; choose a smaller value"
        )
