"""Peak memory of a call, above what was allocated when it began."""

from collections.abc import Callable

import torch
from torch.distributed._tools.mem_tracker import MemTracker

MIB = 2**20


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """MiB of tensors that `call` held at most; inputs and weights are not counted.

    On a GPU as its allocator counts them; on a CPU as PyTorch's memory tracker does.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    tracker = MemTracker()
    with tracker:
        call()
    return tracker.get_tracker_snapshot("peak")[device]["Total"] / MIB
