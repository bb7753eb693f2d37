"""Maps that a gradient may move: slices on the sphere, weights on the scale of their features."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asap_exp.attention import AsapAttention
from asap_exp.calibration.ridge import feature_blocks

Item = TypeVar("Item")

CHECKS = 20
"""Number of times that a fit looks at the held-out data."""

RELAXATION_SCALE = 0.2
"""Step size of a relaxation, which is of order one and moves by some tenths."""


class UnitRows(nn.Module):
    """Parametrisation of rows at unit norm by a free matrix with entries of order one."""

    def forward(self, free: Tensor) -> Tensor:
        return F.normalize(free, dim=-1)

    def right_inverse(self, unit: Tensor) -> Tensor:
        return unit * math.sqrt(unit.shape[-1])


class Scaled(nn.Module):
    """Free numbers times a fixed scale, so that one learning rate suits every feature."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, free: Tensor) -> Tensor:
        return free * self.scale

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.scale


@contextmanager
def trainable(
    attend: AsapAttention, scale: Tensor, *, slices: bool
) -> Iterator[list[nn.Parameter]]:
    """While open, the map is a function of the parameters given: weights and, if `slices`, theta.

    `scale` `[H, P]` is that of the weights, in the order of `feature_blocks`. On leaving, the map
    keeps its values.
    """
    map = attend.map
    _, num_slices, head_dim = map.theta.shape
    shapes: dict[str, nn.Module] = {}
    if num_slices:
        shapes["weight"] = Scaled(scale[:, :num_slices])
    if num_slices and slices:
        shapes["theta"] = UnitRows()
    used = [feature.name for feature, _ in map.features()]
    blocks = feature_blocks(used, num_slices, head_dim)
    for feature, weight in map.features():
        shapes[feature.weight] = Scaled(scale[:, blocks[feature.name]].reshape(weight.shape))
    if map.relaxation is not None:
        shapes["relaxation"] = Scaled(torch.full_like(map.relaxation, RELAXATION_SCALE))
    for name, shape in shapes.items():
        parametrize.register_parametrization(attend, name, shape)
    parameters = [attend.get_parameter(f"parametrizations.{name}.original") for name in shapes]
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        yield parameters
    finally:
        for name in shapes:
            parametrize.remove_parametrizations(attend, name, leave_parametrized=True)
        attend.requires_grad_(False)


def values(attend: AsapAttention) -> dict[str, Tensor]:
    """Copy the map's tensors by name."""
    return {name: x.detach().clone() for name, x in attend.map.present().items()}


@torch.no_grad()
def restore(attend: AsapAttention, saved: Mapping[str, Tensor]) -> None:
    """Put `values` back, to the last bit."""
    for name, value in saved.items():
        getattr(attend, name).copy_(value)


def check_points(updates: int, checks: int) -> set[int]:
    """After which updates to look at the held-out data: evenly, the last one included."""
    return {math.ceil(updates * number / checks) for number in range(1, checks + 1)}


Found = tuple[Tensor, dict[str, Tensor]]
"""KL of each head on held-out data `[H]`, and the values that gave it, by name `[H, ...]`."""


def best_of_each_head(
    update: Callable[[Item], None],
    items: Iterable[Item],
    updates: int,
    start: Found,
    now: Callable[[], Found],
) -> dict[str, Tensor]:
    """Make an update with each of the items; return every head's best values, those of `start` too.

    `now` is called a few times in between. Heads may share no parameter.
    """
    lowest, best = start
    checks = check_points(updates, CHECKS)
    for number, item in enumerate(items, start=1):
        update(item)
        if number in checks:
            kl, found = now()
            better = kl < lowest  # False for NaN
            lowest = torch.where(better, kl, lowest)
            for name, value in found.items():
                best[name][better] = value[better]
    return best


def reshuffled(items: Sequence[Item], count: int, seed: int) -> Iterator[Item]:
    """`count` of the items, in an order drawn anew for every pass over them."""
    shuffler = random.Random(seed)
    drawn: list[Item] = []
    for _ in range(count):
        if not drawn:
            drawn = list(items)
            shuffler.shuffle(drawn)
        yield drawn.pop()
