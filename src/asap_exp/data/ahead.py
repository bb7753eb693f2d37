"""Batches from main memory: while the device works on one, a thread gathers the next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Gather = Callable[[int], tuple[Tensor, ...]]
"""Function from a batch's number to its tensors in main memory."""


def copied_ahead(gather: Gather, count: int, device: torch.device, every: int = 1) -> Gather:
    """Return `gather` with its result on `device`; the following batch is gathered meanwhile.

    Pinned tensors are copied without the host waiting. `count` is the number of batches, of which
    `every` first, second, ... is asked for.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    pending: dict[int, Future] = {}

    def batch(number: int) -> tuple[Tensor, ...]:
        ready = pending.pop(number) if number in pending else pool.submit(gather, number)
        if number + every < count:
            pending[number + every] = pool.submit(gather, number + every)
        else:
            pool.shutdown(wait=False)
        return tuple(x.to(device, non_blocking=True) for x in ready.result())

    return batch
