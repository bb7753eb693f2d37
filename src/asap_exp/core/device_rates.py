"""Optimisers whose learning rates are read on the device, as a CUDA graph must."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> None:
    """Copy the rate of each group into its tensor; the host does not wait."""
    for rate, group in zip(rates, optimizer.param_groups, strict=True):
        rate.fill_(float(group["lr"]))


@contextmanager
def rates_on_device(
    optimizer: torch.optim.Optimizer, rates: Sequence[Tensor], found_inf: Tensor | None = None
) -> Iterator[None]:
    """Let a fused optimiser read its rates from tensors meanwhile.

    It updates nothing where `found_inf` is 1. Schedules and checkpoints see numbers, as ever.
    """
    groups, names = optimizer.param_groups, ("lr", "capturable")
    before: list[dict[str, Any]] = [{n: group[n] for n in names if n in group} for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    if found_inf is not None:
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if found_inf is not None:
            del optimizer.found_inf  # type: ignore[attr-defined]
        for group, values in zip(groups, before, strict=True):
            group |= values
