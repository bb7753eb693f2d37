"""What the ranks of a stage agree on; for a single one, its own value."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def alone() -> bool:
    """Return True if this process works without others."""
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def largest(value: int) -> int:
    """Return the largest value of all ranks."""
    if alone():
        return value
    shared = torch.tensor(value)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)


def total(value: int) -> int:
    """Return the sum of the values of all ranks."""
    if alone():
        return value
    shared = torch.tensor(value)
    dist.all_reduce(shared)
    return int(shared)


def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor, on the CPU, over all ranks."""
    if alone() or not values.numel():
        return values
    shared = values.clone()
    dist.all_reduce(shared)
    return shared / dist.get_world_size()


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, on its device."""
    if alone():
        return tensor
    shared = tensor.detach().clone().contiguous()
    dist.all_reduce(shared)
    return shared


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


def greatest(tensor: Tensor) -> Tensor:
    """Return the element-wise maximum of a tensor over all ranks, on its device."""
    if alone():
        return tensor
    shared = tensor.detach().clone().contiguous()
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
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
