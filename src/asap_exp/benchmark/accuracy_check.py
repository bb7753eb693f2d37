"""Every method is compared with its reference in float64 before it is timed."""

import torch
from torch import Tensor

from asap_exp.benchmark.calls import Results, results
from asap_exp.benchmark.inputs import Inputs, Place
from asap_exp.benchmark.registry import Reference
from asap_exp.core.records.benchmark import RESULTS
from asap_exp.timing.accuracy_check import passes, relative_rms

GRADIENT_FACTOR = 2
"""How much larger than the output's the relative error of a gradient may be."""
GATED_ENTRIES = 2**25
"""Of the plans that are compared at once: all heads of a sample, or else one of them."""


def gate_errors(found: Results, reference: Reference, inputs: Inputs) -> dict[str, float]:
    """Relative RMS error of each result against float64, the worst of the gated places."""
    errors: dict[str, list[float]] = {}
    for place in gated_places(inputs.q):
        exact = results(reference(place), inputs.exact(place))
        for name, x, y in zip(RESULTS, found, exact, strict=False):
            errors.setdefault(name, []).append(relative_error(place.of(x).double(), y))
    # Unlike Python's, this maximum is NaN where either is.
    return {name: float(torch.tensor(both).max()) for name, both in errors.items()}


def gated_places(q: Tensor) -> list[Place]:
    """The first and the last sample, and there the first and the last head if all are too much."""
    batch, heads, n, _ = q.shape
    whole = heads * n**2 <= GATED_ENTRIES
    first, last = [slice(None)] * 2 if whole else [slice(0, 1), slice(heads - 1, heads)]
    places = [Place(0, first), Place(batch - 1, last)]
    return places[:1] if places[0] == places[1] else places


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Relative RMS, or the norm of what should be zero everywhere."""
    return relative_rms(found, exact) if exact.any() else found.norm().item()


def right(errors: dict[str, float], dtype: torch.dtype) -> bool:
    return all(
        passes(error if name == "out" else error / GRADIENT_FACTOR, dtype)
        for name, error in errors.items()
    )


def wrong_words(errors: dict[str, float]) -> str:
    words = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
    return f"relative RMS error against float64: {words}"
