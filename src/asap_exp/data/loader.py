"""Batches out of device memory: the images stay where the model is and are augmented there."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from asap_exp.data.sources import Images

Batch = tuple[Tensor, Tensor]


class DeviceLoader:
    """Iterates over `images` in batches, `transform` applied to each batch on the device.

    With `seed`, an epoch's order is a function of the seed and of `epoch()` alone, so that a
    resumed run sees what the interrupted one would have seen; an incomplete last batch is dropped.
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
        self.images, self.batch_size, self.transform = images, batch_size, transform
        self.seed, self.epoch = seed, epoch

    @property
    def shuffled(self) -> bool:
        return self.seed is not None

    def __len__(self) -> int:
        rows = len(self.images.labels)
        if self.shuffled:
            return max(rows // self.batch_size, 1)
        return -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        for i in range(len(self)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield self.transform(self.images.pixels[rows], self.images.labels[rows])

    def first(self, rows: int, batch_size: int | None = None) -> "DeviceLoader":
        """The same, unshuffled, on the first `rows` rows."""
        images = Images(self.images.pixels[:rows], self.images.labels[:rows], self.images.source)
        return DeviceLoader(images, batch_size or self.batch_size, self.transform)

    def _order(self) -> Tensor:
        rows = len(self.images.labels)
        device = self.images.pixels.device
        if self.seed is None:
            return torch.arange(rows, device=device)
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch()))
        return torch.randperm(rows, generator=generator).to(device)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for everything random in one epoch of a run; distinct for distinct arguments."""
    return (seed << 20) + epoch
