"""Choice of the rows of a subset (`data.limit`)."""

from typing import NamedTuple

import numpy as np


class Limit(NamedTuple):
    """Number of rows that a split has at most (None: all), and the seed that chooses them.

    The rows of one text, in lines, are chosen in one piece.
    """

    most: int | None
    seed: int = 0
    one_text: bool = False

    def rows(self, labels: np.ndarray) -> np.ndarray | None:
        """Return the chosen rows of a split in their stored order; None for all."""
        count = len(labels)
        if self.most is None or count <= self.most:
            return None
        if self.one_text:
            start = int(np.random.default_rng(self.seed).integers(count - self.most + 1))
            return np.arange(start, start + self.most)
        return stratified(labels, self.most, seed=self.seed)


WHOLE = Limit(None)


def stratified(labels: np.ndarray, most: int, *, seed: int) -> np.ndarray:
    """Return `most` rows in their stored order, each class with its share, but for rounding.

    Which rows of a class these are is drawn with `seed`.
    """
    count = len(labels)
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(count) - np.repeat(starts, sizes)
    # The k-th of n rows of a class stands at (k + 1/2) / n, so that all classes fill up evenly.
    place = (rank + 0.5) / np.repeat(sizes, sizes)
    return np.sort(by_class[np.argsort(place, kind="stable")[:most]])
