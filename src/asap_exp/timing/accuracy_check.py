"""Accuracy check before any timing, so that no speed-up of a wrong result is reported."""

import copy

import torch
from torch import Tensor

from asap_exp.attention import Attention, LayerInputs
from asap_exp.ops.coarse_settings import kept_choices, repeated_choices

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative RMS error of one layer's output; in 16 bits, the cost of rounding the output."""


@torch.no_grad()
def gate_error(attend: Attention, inputs: LayerInputs) -> float:
    """Return the relative RMS error of `attend`, as it is timed, against itself in float64.

    A subset of tokens is that of the timed one: of two that are almost as near to a centre float64
    may take the other, which is no error.
    """
    q, k, v, mask = inputs
    with kept_choices() as chosen:
        out = attend(q, k, v, key_padding_mask=mask)
    exact = copy.deepcopy(attend).double()
    with repeated_choices(chosen):
        reference = exact(q.double(), k.double(), v.double(), key_padding_mask=mask)
    return relative_rms(out.double(), reference)


def relative_rms(out: Tensor, reference: Tensor) -> float:
    """Return ||out - reference|| / ||reference||."""
    return ((out - reference).norm() / reference.norm()).item()


def passes(error: float, dtype: torch.dtype) -> bool:
    """Return True if `error` is within the tolerance of `dtype`; NaN never is."""
    return error <= TOLERANCE[dtype]
