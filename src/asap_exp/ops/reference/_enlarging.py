"""What is all but zero, made larger before it is standardised: a power of two changes no digit.

The derivative of 1 / std x is about 1 / std^2 on its way, and overflows long before std underflows.
"""

import torch
from torch import Tensor

FACTORS = {torch.float32: 2.0**50, torch.float64: 2.0**358}
"""About the cube root of the smallest number, inverted: any std that is not 0 comes near to 1."""


def enlargement(variance: Tensor) -> Tensor:
    """A factor for what has this variance: 1 unless that is tiny, and where it has underflown to 0.

    No gradient flows through it.
    """
    factor = FACTORS[variance.dtype]
    tiny = (variance > 0) & (variance < 1 / factor)
    return torch.ones_like(variance).masked_fill(tiny, factor)
