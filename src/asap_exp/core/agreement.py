"""What the ranks of a stage agree on; for a single one, its own value."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

_apart: ContextVar[bool] = ContextVar("apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """While open, this process works without the others of its group, which may do other things."""
    before = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(before)


def alone() -> bool:
    """Return True if this process works without others."""
    if _apart.get():
        return True
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


@overload
def largest(value: int) -> int: ...
@overload
def largest(value: Tensor) -> Tensor: ...
def largest(value: int | Tensor) -> int | Tensor:
    """Return the largest value of all ranks, of a tensor for each element, on its device."""
    return reduced(value, "MAX")


@overload
def total(value: int) -> int: ...
@overload
def total(value: Tensor) -> Tensor: ...
def total(value: int | Tensor) -> int | Tensor:
    """Return the sum of the values of all ranks, of a tensor for each element, on its device."""
    return reduced(value, "SUM")


def reduced(value: int | Tensor, operation: str) -> int | Tensor:
    """Return a number, or a copy of a tensor, reduced over all ranks; alone the value itself."""
    if alone():
        return value
    if isinstance(value, Tensor):
        shared = value.detach().clone().contiguous()
    else:
        shared = torch.tensor(value)
    dist.all_reduce(shared, op=getattr(dist.ReduceOp, operation))
    return shared if isinstance(value, Tensor) else int(shared)


def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor, on the CPU, over all ranks."""
    if alone() or not values.numel():
        return values
    shared = values.clone()
    dist.all_reduce(shared)
    return shared / dist.get_world_size()


def num_ranks() -> int:
    """Return the number of ranks."""
    return 1 if alone() else dist.get_world_size()


def of_rank(tensor: Tensor, rank: int) -> Tensor:
    """Return a rank's tensor, all ranks giving one of that shape, on its device."""
    if alone():
        return tensor
    shared = tensor.detach().clone().contiguous()
    dist.broadcast(shared, src=rank)
    return shared


def wait_for_all() -> None:
    """Wait until every rank has come here; it takes no time of a CPU or a GPU."""
    largest(0)


def all_true(flag: Tensor) -> Tensor:
    """Return whether a boolean scalar is True on all ranks; on a GPU the host does not wait."""
    if alone():
        return flag
    shared = flag.to(torch.int32)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return shared.bool()


def of_all(value: Any) -> list[Any]:
    """Return the values of all ranks, in their order."""
    if alone():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def of_first(value: Any) -> Any:
    """Return the value of rank 0."""
    if alone():
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]
