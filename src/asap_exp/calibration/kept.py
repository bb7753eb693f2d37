"""Recorded batches, as many as a number of bytes holds."""

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from asap_exp.core.agreement import total


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class Kept(Generic[Item]):
    """Batches of a pass, each a list of items by layer path; at least one of them.

    Where not all fit into `room` bytes, every second, fourth, ... of them: texts come from short to
    long, and a fit must see both. With several ranks each keeps its part of the same batches.
    """

    def __init__(self, room: int) -> None:
        self.room, self.stride = room, 1
        self.batches: list[Mapping[str, list[Item]]] = []

    def wants(self, number: int) -> bool:
        """Return True if the batch of this number is to be added."""
        return number % self.stride == 0

    def add(self, batch: Mapping[str, list[Item]]) -> None:
        self.batches.append(batch)
        while total(self.nbytes) > self.room and len(self.batches) > 1:
            self.batches = self.batches[::2]
            self.stride *= 2

    @property
    def nbytes(self) -> int:
        of_batches = (items for batch in self.batches for items in batch.values())
        return sum(item.nbytes for items in of_batches for item in items)

    def by_path(self, paths: Sequence[str]) -> dict[str, list[Item]]:
        """Return the items of each layer, batch after batch."""
        return {path: [item for batch in self.batches for item in batch[path]] for path in paths}
