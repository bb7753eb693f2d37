"""Numbers on their way from the device to the host, which does not wait for them."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Deliver = Callable[[list[float]], None]


class Readings:
    """Queue of copies to the host; each is delivered when a later one is sent, or on demand.

    So the host is at most two copies ahead of the device.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None, Deliver]] = deque()

    def send(self, values: Tensor, deliver: Deliver) -> None:
        """Copy `values` [n] to the host and deliver those sent before the last ones."""
        copy = values.to("cpu", non_blocking=values.is_cuda, copy=True)
        arrived = torch.cuda.Event() if values.is_cuda else None
        if arrived is not None:
            arrived.record()
        self._sent.append((copy, arrived, deliver))
        while len(self._sent) > 2:
            self._deliver()

    def receive(self) -> None:
        """Wait for all that was sent, and deliver it."""
        while self._sent:
            self._deliver()

    def _deliver(self) -> None:
        copy, arrived, deliver = self._sent.popleft()
        if arrived is not None:
            arrived.synchronize()
        deliver(copy.tolist())
