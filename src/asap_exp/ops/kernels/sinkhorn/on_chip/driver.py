"""The few functions of NVIDIA's driver that load and launch a kernel of blocks in clusters."""

import ctypes
import functools
from typing import NamedTuple

import torch

NON_PORTABLE_CLUSTERS, SHARED_BYTES = 14, 8
"""Function attributes: clusters of more than 8 blocks; most dynamic shared memory of a block."""

CLUSTER_DIMENSION = 4
"""Launch attribute: the blocks of a cluster."""

MOST_PORTABLE = 8
"""Blocks of a cluster that every GPU with clusters can run."""


class Attribute(ctypes.Structure):
    """A launch attribute whose value is three numbers."""

    _fields_ = [
        ("id", ctypes.c_int),
        ("pad", ctypes.c_char * 4),
        ("value", ctypes.c_uint * 16),
    ]


class Configuration(ctypes.Structure):
    """The size of a launch, as the driver reads it."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("num_attributes", ctypes.c_uint),
    ]


class Kernel(NamedTuple):
    """A kernel on one GPU: `clusters` of `cluster_size` blocks of `threads` run at a time."""

    function: ctypes.c_void_p
    cluster_size: int
    clusters: int
    threads: int
    shared_bytes: int

    def launch(self, most_clusters: int, argument: ctypes.Structure, stream: int) -> None:
        """Run the kernel on a stream, with at most this many clusters."""
        need_context()
        blocks = min(self.clusters, most_clusters) * self.cluster_size
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        launched = driver().cuLaunchKernel(
            self.function, blocks, 1, 1, self.threads, 1, 1, self.shared_bytes,
            ctypes.c_void_p(stream), arguments, None,
        )  # fmt: skip
        check(launched, f"the launch of {blocks} blocks in clusters of {self.cluster_size}")


def load(
    machine_code: bytes, name: str, cluster_size: int, threads: int, shared_symbol: str
) -> Kernel:
    """Load a kernel onto the current GPU; a constant of its module says how much memory it shares.

    Raises RuntimeError if the GPU cannot run a cluster of this size.
    """
    cuda = driver()
    need_context()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuModuleLoadData(ctypes.byref(module), machine_code), "loading the kernel")
    found = cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
    check(found, f"finding {name}")
    shared_bytes = constant(module, shared_symbol)
    for attribute, value in ((SHARED_BYTES, shared_bytes), (NON_PORTABLE_CLUSTERS, 1)):
        if attribute != NON_PORTABLE_CLUSTERS or cluster_size > MOST_PORTABLE:
            changed = cuda.cuFuncSetAttribute(function, attribute, value)
            check(changed, f"setting attribute {attribute} to {value}")
    clusters = most_clusters(function, cluster_size, threads, shared_bytes)
    return Kernel(function, cluster_size, clusters, threads, shared_bytes)


def need_context() -> None:
    """Make the context that PyTorch uses on its current GPU that of this thread, if it has none.

    A thread has one after its first call of CUDA's run-time library. `explain` may come before any,
    and a thread that was just started may find all memory that it needs in PyTorch's cache.
    """
    cuda, context = driver(), ctypes.c_void_p()
    torch.cuda.init()
    check(cuda.cuCtxGetCurrent(ctypes.byref(context)), "asking for the context")
    if context.value is not None:
        return
    device = ctypes.c_int()
    found = cuda.cuDeviceGet(ctypes.byref(device), torch.cuda.current_device())
    check(found, "finding the GPU")
    kept = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    check(kept, "keeping the GPU's context")
    check(cuda.cuCtxSetCurrent(context), "setting the context")


def constant(module: ctypes.c_void_p, name: str) -> int:
    """Return an int constant of a module."""
    address, size, value = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_int()
    found = driver().cuModuleGetGlobal_v2(
        ctypes.byref(address), ctypes.byref(size), module, name.encode()
    )
    check(found, f"finding {name}")
    check(driver().cuMemcpyDtoH_v2(ctypes.byref(value), address, 4), f"reading {name}")
    return value.value


def most_clusters(
    function: ctypes.c_void_p, cluster_size: int, threads: int, shared_bytes: int
) -> int:
    """Return how many clusters run at the same time; RuntimeError if none does."""
    attribute = Attribute(CLUSTER_DIMENSION)
    attribute.value[:3] = cluster_size, 1, 1
    configuration = Configuration(
        (ctypes.c_uint * 3)(cluster_size, 1, 1), (ctypes.c_uint * 3)(threads, 1, 1), shared_bytes,
        None, ctypes.pointer(attribute), 1,
    )  # fmt: skip
    clusters = ctypes.c_int()
    asked = driver().cuOccupancyMaxActiveClusters(
        ctypes.byref(clusters), function, ctypes.byref(configuration)
    )
    what = f"clusters of {cluster_size} blocks with {shared_bytes} bytes of shared memory each"
    check(asked, f"asking for {what}")
    if clusters.value < 1:
        raise RuntimeError(f"this GPU runs no {what}; use a route that needs none")
    return clusters.value


def check(result: int, what: str) -> None:
    """Raise RuntimeError with the driver's own words if a call failed."""
    if result:
        message = ctypes.c_char_p()
        driver().cuGetErrorString(result, ctypes.byref(message))
        reason = message.value.decode() if message.value else f"error {result}"
        raise RuntimeError(f"{what} failed: {reason}")


@functools.cache
def driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
