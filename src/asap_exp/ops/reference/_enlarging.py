"""Scaling up of tiny values before they are standardised, by a power of two, which is exact.

The derivative of 1 / std x has an intermediate of about 1 / std^2, which overflows long before std
underflows.
"""

import torch
from torch import Tensor

FACTORS = {torch.float32: 2.0**50, torch.float64: 2.0**358}
"""Factors: about the inverse cube root of the smallest number, so any nonzero std gets near 1."""


def enlargement(variance: Tensor) -> Tensor:
    """Return a factor for values of this variance: 1 unless it is tiny, or underflowed to 0.

    No gradient flows through the factor.
    """
    factor = FACTORS[variance.dtype]
    tiny = (variance > 0) & (variance < 1 / factor)
    return torch.ones_like(variance).masked_fill(tiny, factor)
