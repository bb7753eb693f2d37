"""Kind of features of a sliced map: a function of queries and keys, and its weight."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from asap_exp.ops.coarse_settings import CoarseSettings


class Tokens(NamedTuple):
    """Inputs of features of `q`: q, k `[B, H, N, D]`, the options, and the slices.

    `phi`, `x` and `y` `[B, H, L, N]` are potentials and projections on the slices, scaled up where
    tiny (`reference.adaptive.enlarged`); None unless some feature is per slice. `coarse` says which
    tokens a coarse dual is made of; None unless the map has one. With `of_keys` the features are
    those of the keys: `q` and `k` are in each other's place.
    """

    q: Tensor
    k: Tensor
    eps: float
    scale: float
    key_padding_mask: Tensor | None
    phi: Tensor | None = None
    x: Tensor | None = None
    y: Tensor | None = None
    coarse: CoarseSettings | None = None
    of_keys: bool = False


@dataclass(frozen=True)
class Feature:
    """A kind of features of the queries; a map adds their product with a weight to its dual.

    `name` is the key below `calibration`, and `weight` the field of `SlicedMap`. `count` is the
    number of features, per slice if `per_slice`: a number, or a function of head_dim.
    `compute` returns `[B, H, count, N]`, or `[B, H, count, L, N]` per slice, centred over the valid
    tokens and 0 at padded ones. `order` is the place among the fields of `SlicedMap`.
    """

    name: str
    weight: str
    per_slice: bool
    count: int | Callable[[int], int]
    layout: str
    order: int
    compute: Callable[[Tokens], Tensor]

    def shape(self, heads: int, slices: int, head_dim: int) -> tuple[int, ...]:
        """Shape of the weight: `[H, count]`, or `[H, count, L]` per slice."""
        count = self.count if isinstance(self.count, int) else self.count(head_dim)
        return (heads, count, slices) if self.per_slice else (heads, count)

    def total(self, slices: int, head_dim: int) -> int:
        """Return the number of features per head."""
        _, *sizes = self.shape(1, slices, head_dim)
        return torch.Size(sizes).numel()

    def flat(self, tokens: Tokens) -> Tensor:
        """Compute the features as one list, `[B, H, total, N]`."""
        features = self.compute(tokens)
        return features.flatten(2, 3) if self.per_slice else features

    def weighted(self, weight: Tensor, tokens: Tokens) -> Tensor:
        """Compute the sum of the features times `weight`, `[B, H, N]`."""
        features = self.compute(tokens)
        equation = "hpl,bhpln->bhn" if self.per_slice else "hp,bhpn->bhn"
        return torch.einsum(equation, weight.to(features.dtype), features)


FEATURES: dict[str, Feature] = {}
"""Every kind of features by name, in the order of the fields of `SlicedMap`."""


def feature(
    name: str,
    *,
    weight: str,
    count: int | Callable[[int], int],
    layout: str,
    per_slice: bool = False,
    order: int = 100,
) -> Callable[[Callable[[Tokens], Tensor]], Callable[[Tokens], Tensor]]:
    """Register the decorated function as a kind of features; see `Feature`."""

    def add(compute: Callable[[Tokens], Tensor]) -> Callable[[Tokens], Tensor]:
        FEATURES[name] = Feature(name, weight, per_slice, count, layout, order, compute)
        in_order = sorted(FEATURES.items(), key=lambda item: (item[1].order, item[0]))
        FEATURES.clear()
        FEATURES.update(in_order)
        return compute

    return add
