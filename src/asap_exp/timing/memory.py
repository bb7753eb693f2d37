"""Peak memory of a call, above what was allocated when it began."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Return the peak MiB allocated by `call`, excluding inputs and weights.

    On a GPU this is the allocator's count. On a CPU it covers the tensors that operators return,
    but not what a kernel allocates only while it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    with LiveStorages() as storages:
        call()
    return storages.peak / MIB


class LiveStorages(TorchDispatchMode):
    """Dispatch mode that counts the bytes of every storage made by an operator while it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable,
        types: object,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors((args, kwargs)):
            self._meet(tensor, counted=False)
        out = func(*args, **kwargs)
        for tensor in tensors(out):
            self._meet(tensor, counted=True)
        return out

    def _meet(self, tensor: Tensor, *, counted: bool) -> None:
        """Register a storage; inputs are known but not `counted`."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes() if counted else 0
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def tensors(tree: object) -> list[Tensor]:
    """Return the tensors among the leaves of `tree`."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
