"""Batches prepared on the model's device, where samples stay or to which batches are copied."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from asap_exp.core.errors import UserError
from asap_exp.core.ranks import ALONE, Ranks
from asap_exp.core.tensors import fingerprint
from asap_exp.data.ahead import Gather, copied_ahead
from asap_exp.data.sources import Images

Batch = tuple[Any, Tensor]
"""Input of a network, and its targets: one per sample or one per masked token."""


class Place(NamedTuple):
    """Position in training: the epoch, and how many of its batches have been given out."""

    epoch: int
    batches: int


class BatchLoader(ABC):
    """Iterable over samples in batches.

    With `seed`, the order of an epoch depends only on the seed and on `epoch()`, so that a resumed
    run sees the same batches as an uninterrupted one. The loader's state is its position in an
    epoch; Lightning stores it in checkpoints.

    Of every batch each of the `ranks` gives out its part alone, so the order of an epoch, and a
    position in it, are the same for any number of them. With `turns`, each of these ranks gives out
    whole batches instead, every so many.
    """

    def __init__(
        self, batch_size: int, seed: int | None, epoch: Callable[[], int], ranks: Ranks = ALONE
    ) -> None:
        self.batch_size, self.seed, self.epoch, self.ranks = batch_size, seed, epoch, ranks
        self.turns = ALONE
        self._given, self._resumed = Place(-1, 0), Place(-1, 0)

    def state_dict(self) -> dict[str, int]:
        return self._given._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue the next iteration after the saved position, if it is in the same epoch."""
        self._resumed = Place(**state)

    def _numbers(self) -> Iterator[int]:
        """Yield the numbers of the batches still to be given out, in order."""
        epoch = self.epoch()
        first = self._resumed.batches if self._resumed.epoch == epoch else 0
        self._resumed = Place(-1, 0)
        for number in range(first, len(self)):
            self._given = Place(epoch, number + 1)
            if number % self.turns.world == self.turns.rank:
                yield number

    @property
    def shuffled(self) -> bool:
        """True if every epoch draws its own order."""
        return self.seed is not None

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Number of samples."""

    @abstractmethod
    def weight(self, number: int) -> float:
        """Return the weight of the mean loss of this rank's part of a batch; see Ranks.weight."""

    @abstractmethod
    def samples_of(self, number: int) -> np.ndarray:
        """Return the numbers, in the stored order, of this rank's samples of a batch."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    @abstractmethod
    def first(self, samples: int, batch_size: int | None = None) -> Self:
        """Return an unshuffled loader of the first `samples` samples in their stored order.

        With `batch_size`, every batch except the last has exactly that many samples. Every rank
        gets all of them.
        """

    def shared(self, ranks: Ranks) -> Self:
        """Return a loader of the same batches, of which each of `ranks` gets its part."""
        loader = copy(self)
        loader.ranks = ranks
        return loader

    def in_turns(self) -> Iterator[tuple[int, Batch]]:
        """Yield whole batches with their numbers, each on one rank alone, in turns."""
        whole = self.shared(ALONE)
        whole.turns = self.ranks
        numbers = range(self.ranks.rank, len(self), self.ranks.world)
        return zip(numbers, whole, strict=True)

    def example(self) -> Self:
        """Return a loader of one sample that is small enough to plot."""
        return self.first(1)

    def longest(self) -> tuple[Batch, int]:
        """Return a batch of the longest sample, and how many of it fill the largest batch."""
        return next(iter(self.first(1))), min(self.batch_size, self.num_samples)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return the SHA-256 of the samples."""

    def generator(self) -> torch.Generator:
        """Return the random generator for the order of this epoch; the loader must have a seed."""
        assert self.seed is not None
        return torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch()))


class DeviceLoader(BatchLoader):
    """Batches of images, with `transform` applied to each batch on the device.

    Drops the last incomplete batch when shuffling.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        transform: Callable[[Tensor, Tensor], Batch],
        *,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        ranks: Ranks = ALONE,
        device: torch.device | None = None,
    ) -> None:
        """Set up the loader; batches of images in main memory are copied to `device`."""
        super().__init__(batch_size, seed, epoch, ranks)
        self.images, self.transform = images, transform
        self.device = images.pixels.device if device is None else device

    @property
    def num_samples(self) -> int:
        return self.images.rows

    def __len__(self) -> int:
        if self.shuffled:
            return max(self.num_samples // self.batch_size, 1)
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()

        def gathered(i: int) -> tuple[Tensor, Tensor]:
            rows = self.ranks.part(order[i * self.batch_size : (i + 1) * self.batch_size])
            return self.images.gathered(rows, pinned=self.device.type == "cuda")

        batches: Gather = gathered
        if self.images.picked is not None:
            batches = copied_ahead(gathered, len(self), self.device, self.turns.world)
        for i in self._numbers():
            yield self.transform(*batches(i))

    def weight(self, number: int) -> float:
        return weight_of_rows(self, number)

    def samples_of(self, number: int) -> np.ndarray:
        return part_of_rows(self, self._order().cpu().numpy(), number)

    def first(self, samples: int, batch_size: int | None = None) -> "DeviceLoader":
        images = self.images.take(np.arange(min(samples, self.num_samples)))
        size = batch_size or self.batch_size
        return DeviceLoader(images, size, self.transform, device=self.device)

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def _order(self) -> Tensor:
        device = self.images.pixels.device
        if not self.shuffled:
            return torch.arange(self.num_samples, device=device)
        return torch.randperm(self.num_samples, generator=self.generator()).to(device)


class TensorLoader(BatchLoader):
    """Batches of two tensors, inputs and labels `[samples, ...]`, in their order.

    For measuring a model of your own (`asap_exp.evaluate.measure`).
    """

    def __init__(self, inputs: Tensor, labels: Tensor, batch_size: int) -> None:
        super().__init__(batch_size, None, lambda: 0)
        if len(inputs) != len(labels):
            raise UserError(f"{len(inputs)} inputs have {len(labels)} labels; give one for each")
        self.inputs, self.labels = inputs, labels

    @property
    def num_samples(self) -> int:
        return len(self.inputs)

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for i in self._numbers():
            batch = slice(i * self.batch_size, (i + 1) * self.batch_size)
            yield self.ranks.part(self.inputs[batch]), self.ranks.part(self.labels[batch])

    def weight(self, number: int) -> float:
        return weight_of_rows(self, number)

    def samples_of(self, number: int) -> np.ndarray:
        return part_of_rows(self, np.arange(self.num_samples), number)

    def first(self, samples: int, batch_size: int | None = None) -> "TensorLoader":
        size = batch_size or self.batch_size
        return TensorLoader(self.inputs[:samples], self.labels[:samples], size)

    def fingerprint(self) -> str:
        return fingerprint({"inputs": self.inputs, "labels": self.labels})


def weight_of_rows(loader: BatchLoader, number: int) -> float:
    """Return the weight of a part of a batch of `batch_size` rows, or of those that are left."""
    ranks, start = loader.ranks, number * loader.batch_size
    rows = min(loader.num_samples - start, loader.batch_size)
    return ranks.weight([part.stop - part.start for part in ranks.parts(rows)])


def part_of_rows(loader: BatchLoader, order: np.ndarray, number: int) -> np.ndarray:
    """Return the rows of `order` that this rank gets of a batch of `batch_size` of them."""
    start = number * loader.batch_size
    return loader.ranks.part(order[start : start + loader.batch_size])


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return the seed for all randomness in one epoch; distinct arguments give distinct seeds."""
    return (rank << 52) + (seed << 20) + epoch
