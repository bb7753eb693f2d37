"""Batches out of device memory: samples stay where the model is and are prepared there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from asap_exp.data.sources import Images

Batch = tuple[Any, Tensor]
"""What a network takes, and the targets: one a sample, or one a masked token."""


class Place(NamedTuple):
    """After how many batches of an epoch."""

    epoch: int
    batches: int


class BatchLoader(ABC):
    """Iterates over samples in batches.

    With `seed`, an epoch's order is a function of the seed and of `epoch()` alone, so that a
    resumed run sees what the interrupted one would have seen. Its state is the place in an epoch:
    Lightning keeps it in checkpoints.
    """

    def __init__(self, batch_size: int, seed: int | None, epoch: Callable[[], int]) -> None:
        self.batch_size, self.seed, self.epoch = batch_size, seed, epoch
        self._given, self._resumed = Place(-1, 0), Place(-1, 0)

    def state_dict(self) -> dict[str, int]:
        return self._given._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on after that place, if it is in the same epoch."""
        self._resumed = Place(**state)

    def _numbers(self) -> Iterator[int]:
        """The numbers of the batches to give, in their order."""
        epoch = self.epoch()
        first = self._resumed.batches if self._resumed.epoch == epoch else 0
        self._resumed = Place(-1, 0)
        for number in range(first, len(self)):
            self._given = Place(epoch, number + 1)
            yield number

    @property
    def shuffled(self) -> bool:
        return self.seed is not None

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    @abstractmethod
    def first(self, rows: int, batch_size: int | None = None) -> Self:
        """The same, unshuffled, on the first `rows` samples in their stored order.

        With `batch_size`, every batch has that many, but for the last.
        """

    def example(self) -> Self:
        """One sample that is small enough to be looked at."""
        return self.first(1)

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of the samples."""

    def generator(self) -> torch.Generator:
        """For the order of this epoch; the loader must have a seed."""
        assert self.seed is not None
        return torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch()))


class DeviceLoader(BatchLoader):
    """Batches of images, `transform` applied to each batch on the device.

    Shuffled, an incomplete last batch is dropped.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        transform: Callable[[Tensor, Tensor], Batch],
        *,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(batch_size, seed, epoch)
        self.images, self.transform = images, transform

    @property
    def rows(self) -> int:
        return self.images.rows

    def __len__(self) -> int:
        if self.shuffled:
            return max(self.rows // self.batch_size, 1)
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        for i in self._numbers():
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield self.transform(self.images.pixels[rows], self.images.labels[rows])

    def first(self, rows: int, batch_size: int | None = None) -> "DeviceLoader":
        images = Images(self.images.pixels[:rows], self.images.labels[:rows], self.images.source)
        return DeviceLoader(images, batch_size or self.batch_size, self.transform)

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def _order(self) -> Tensor:
        device = self.images.pixels.device
        if not self.shuffled:
            return torch.arange(self.rows, device=device)
        return torch.randperm(self.rows, generator=self.generator()).to(device)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for everything random in one epoch of a run; distinct for distinct arguments."""
    return (seed << 20) + epoch
