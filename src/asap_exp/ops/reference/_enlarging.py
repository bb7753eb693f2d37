"""Scaling up of tiny values before they are standardised: a power of two changes no digit.

The derivative of 1 / std x has an intermediate of about 1 / std^2, which overflows long before std
underflows.
"""

import torch
from torch import Tensor

FACTORS = {torch.float32: 2.0**50, torch.float64: 2.0**358}
"""About the inverse cube root of the smallest number: it brings any std but 0 near to 1."""


def enlargement(variance: Tensor) -> Tensor:
    """Return a factor for values of this variance: 1 unless it is tiny, or 0 by underflow.

    No gradient flows through it.
    """
    factor = FACTORS[variance.dtype]
    tiny = (variance > 0) & (variance < 1 / factor)
    return torch.ones_like(variance).masked_fill(tiny, factor)
