"""Test samples that each variant predicts right, gathered from the ranks in their stored order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from asap_exp.core.agreement import of_all
from asap_exp.core.records.right import RightSamples, labels_hash, packed_samples
from asap_exp.core.typed import checked


@dataclass
class Predicted:
    """A rank's samples: their numbers in the test split, their labels, and what is right.

    Batches are added one by one, with what each variant predicts right in it, bool `[samples]`.
    """

    numbers: list[np.ndarray] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    right: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, numbers: np.ndarray, labels: Tensor, right: Mapping[str, Tensor]) -> None:
        self.numbers.append(numbers)
        self.labels.append(labels)
        for key, flags in right.items():
            self.right.setdefault(key, []).append(flags)

    def of_all_ranks(self) -> "TestedSamples":
        """Return the samples of all ranks in the order of the test split."""
        found = of_all((joined(self.numbers), arrays(self.labels), self._flags()))
        order = np.argsort(np.concatenate([numbers for numbers, _, _ in found]), kind="stable")
        return TestedSamples(
            labels_hash(np.concatenate([labels for _, labels, _ in found])[order]),
            {
                key: np.concatenate([flags[key] for _, _, flags in found if key in flags])[order]
                for key in max((flags for _, _, flags in found), key=len)
            },
        )

    def _flags(self) -> dict[str, np.ndarray]:
        return {key: arrays(parts) for key, parts in self.right.items()}


@dataclass(frozen=True)
class TestedSamples:
    """All test samples in their order: the hash of their labels, and what is right by key, bool."""

    labels_sha256: str
    right: dict[str, np.ndarray]

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "TestedSamples":
        """Return the samples that were `stored`."""
        found = checked(RightSamples, stored)
        return cls(found.labels_sha256, found.all())

    def add(self, key: str, right: np.ndarray, labels: np.ndarray) -> None:
        """Add a method that predicted the same samples by itself."""
        assert labels_hash(labels) == self.labels_sha256, "samples in another order"
        self.right[key] = right

    def stored(self) -> dict[str, Any]:
        """Return the samples as a record holds them."""
        return packed_samples(self.right, self.labels_sha256)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def arrays(parts: list[Tensor]) -> np.ndarray:
    """Return tensors of a device, one after another, as an array."""
    return joined([part.cpu().numpy() for part in parts])
