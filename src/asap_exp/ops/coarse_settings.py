"""Settings of a coarse dual: which tokens it is made of, and by how many updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from asap_exp.ops.checks import check_among, check_count
from asap_exp.ops.masking import compute_dtype
from asap_exp.ops.subsets import (
    BY_PLACE,
    CHOICES,
    GRIDS,
    WEIGHTS,
    Subset,
    check_grid,
    check_grid_width,
    choose_subset,
)

NAMES = "coarse.choice", "coarse.grid_width"
"""Names of choice and width where a caller gives the settings as `coarse`."""


class CoarseSettings(NamedTuple):
    """A choice of `tokens` tokens (`asap_exp.ops.choose_subset`), and `num_iters` updates on them.

    The keys are chosen from; in cross-attention with another number of queries, these are chosen
    from by themselves.
    """

    tokens: int
    choice: str = "sequence"
    weights: str = "equal"
    num_iters: int = 20
    seed: int = 0
    grid_width: int = 0

    def validate(self) -> None:
        """Raise TypeError or ValueError for a setting of another type or out of range."""
        for name, least in (("tokens", 1), ("num_iters", 1), ("seed", 0), ("grid_width", 0)):
            check_count(f"coarse.{name}", getattr(self, name), least)
        check_among("coarse.choice", self.choice, tuple(CHOICES))
        check_among("coarse.weights", self.weights, WEIGHTS)
        check_grid_width(self.choice, self.grid_width, NAMES)

    def subsets(
        self,
        q: Tensor,
        k: Tensor,
        key_padding_mask: Tensor | None,
        names: tuple[str, str] = NAMES,
    ) -> tuple[Subset, Subset | None]:
        """Choose the subset and, if there are other numbers of queries and keys, that of keys.

        Raises ValueError, with these `names`, for tokens that do not fill the grid of a choice.
        """
        of_keys = self._chosen(k, key_padding_mask, names)
        if q.shape[2] == k.shape[2]:
            return of_keys, None
        return self._chosen(q, None, names), of_keys

    def _chosen(self, x: Tensor, key_padding_mask: Tensor | None, names: tuple[str, str]) -> Subset:
        place = self, x.shape[2]
        if _REPEATED is not None and place in _REPEATED:
            tokens, weight = _REPEATED[place]
            return Subset(tokens, weight.to(compute_dtype(x)))
        found = self._found(x, key_padding_mask, names)
        if _KEPT is not None:
            _KEPT[place] = found
        return found

    def _found(self, x: Tensor, key_padding_mask: Tensor | None, names: tuple[str, str]) -> Subset:
        if self.choice in GRIDS:
            check_grid(self.choice, x.shape[2], self.grid_width, key_padding_mask, names)
        if key_padding_mask is None and self.choice in BY_PLACE and self.weights == "equal":
            return by_place(self, x)
        return self._choose(x, key_padding_mask)

    def _choose(self, x: Tensor, key_padding_mask: Tensor | None) -> Subset:
        return choose_subset(
            x,
            self.tokens,
            choice=self.choice,
            weights=self.weights,
            seed=self.seed,
            grid_width=self.grid_width,
            key_padding_mask=key_padding_mask,
        )


Choices = dict[tuple[CoarseSettings, int], Subset]
"""Subsets of the inputs of one call, by settings and number of tokens."""
_KEPT: Choices | None = None
_REPEATED: Choices | None = None


@contextmanager
def kept_choices() -> Iterator[Choices]:
    """Yield a dictionary that gets the subsets that one call of an operator chooses meanwhile."""
    global _KEPT
    outer, _KEPT = _KEPT, {}
    try:
        yield _KEPT
    finally:
        _KEPT = outer


@contextmanager
def repeated_choices(kept: Choices) -> Iterator[None]:
    """Let a call on the same inputs take these subsets: in another precision, near ties differ."""
    global _REPEATED
    outer, _REPEATED = _REPEATED, kept
    try:
        yield
    finally:
        _REPEATED = outer


def by_place(settings: CoarseSettings, x: Tensor) -> Subset:
    """Return the subset of any tokens, as many as in `x` `[B, H, N, D]`, without padding.

    It is made once, but each time for what takes no tensors from elsewhere: compiled
    graphs, and tensors without contents (`FakeTensor`). A CUDA graph reads what was there before
    it; what is made while one is captured is overwritten later, and so not kept.
    """
    n, device, dtype = x.shape[2], x.device, compute_dtype(x)
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor):
        return settings._choose(x.new_zeros((1, 1, n, 1), dtype=dtype), None)
    key = settings, n, device, dtype
    if key in _BY_PLACE:
        return _BY_PLACE[key]
    with torch.inference_mode(False):  # a gradient may read it later
        found = settings._choose(torch.zeros(1, 1, n, 1, device=device, dtype=dtype), None)
    if graph_is_captured(device):
        return found
    return _BY_PLACE.setdefault(key, found)  # another thread may have been first


_BY_PLACE: dict[tuple[CoarseSettings, int, torch.device, torch.dtype], Subset] = {}
"""Subsets by what they depend on. None is dropped, since a CUDA graph may read it; each has some
twelve bytes a token.
"""


def graph_is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
