"""The comparison of every method with its float64 reference, before it is timed."""

import torch
from torch import Tensor

from asap_exp.benchmark.calls import Results, results
from asap_exp.benchmark.inputs import Inputs, Place
from asap_exp.benchmark.registry import Reference
from asap_exp.core.records.benchmark import RESULTS
from asap_exp.timing.accuracy_check import passes, relative_rms

GRADIENT_FACTOR = 2
"""Factor by which a gradient's relative error may exceed the bound for the output."""
GATED_ENTRIES = 2**25
"""Maximum number of plan entries compared at once: with more, one head instead of all."""


def gate_errors(found: Results, reference: Reference, inputs: Inputs) -> dict[str, float]:
    """Return the relative RMS error of each result against float64, the worst over all places."""
    errors: dict[str, list[float]] = {}
    for place in gated_places(inputs.q):
        exact = results(reference(place), inputs.exact(place))
        for name, x, y in zip(RESULTS, found, exact, strict=False):
            errors.setdefault(name, []).append(relative_error(place.of(x).double(), y))
    # Unlike Python's max, this maximum is NaN if either value is.
    return {name: float(torch.tensor(both).max()) for name, both in errors.items()}


def gated_places(q: Tensor) -> list[Place]:
    """Return the first and last sample, with only the first and last head if all are too many."""
    batch, heads, n, _ = q.shape
    whole = heads * n**2 <= GATED_ENTRIES
    first, last = [slice(None)] * 2 if whole else [slice(0, 1), slice(heads - 1, heads)]
    places = [Place(0, first), Place(batch - 1, last)]
    return places[:1] if places[0] == places[1] else places


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the relative RMS error, or the norm of `found` if it should be zero everywhere."""
    return relative_rms(found, exact) if exact.any() else found.norm().item()


def right(errors: dict[str, float], dtype: torch.dtype, *, tf32: bool = False) -> bool:
    """Return whether the errors are those of `dtype`; with `tf32`, of its products as TF32."""
    if tf32 and dtype == torch.float32:
        dtype = torch.float16  # as many digits
    return all(
        passes(error if name == "out" else error / GRADIENT_FACTOR, dtype)
        for name, error in errors.items()
    )


def wrong_words(errors: dict[str, float]) -> str:
    words = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
    return f"relative RMS error against float64: {words}"
