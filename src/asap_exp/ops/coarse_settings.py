"""Settings of a coarse dual: which tokens it is made of, and by how many updates."""

from typing import NamedTuple

from torch import Tensor

from asap_exp.ops.checks import check_among, check_count
from asap_exp.ops.subsets import CHOICES, WEIGHTS, Subset, check_grid, choose_subset


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

    def subsets(
        self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None
    ) -> tuple[Subset, Subset | None]:
        """Choose the subset and, if there are other numbers of queries and keys, that of keys."""
        of_keys = self._chosen(k, key_padding_mask)
        if q.shape[2] == k.shape[2]:
            return of_keys, None
        return self._chosen(q, None), of_keys

    def _chosen(self, x: Tensor, key_padding_mask: Tensor | None) -> Subset:
        if self.choice == "grid":
            check_grid(x.shape[2], self.grid_width, key_padding_mask)
        return choose_subset(
            x,
            self.tokens,
            choice=self.choice,
            weights=self.weights,
            seed=self.seed,
            grid_width=self.grid_width,
            key_padding_mask=key_padding_mask,
        )
