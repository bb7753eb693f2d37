"""All updates of a head with its plan E = exp(S + g - shift) on chip in float16, made once.

A cluster of up to 4 x 4 blocks holds one head, each block 256 x 256 entries: in registers for the
sums over keys, and again in shared memory for those over queries, both on the matrix units, with
sums in float32 and scalings in two parts of float16. One exponential an entry serves the first
column step, all updates and the output. Blocks send partial sums to each other's shared memory and
wait for their number of bytes; the only barriers of an update are the two of a block. Clusters take
heads in turn, and the keys of the next head arrive during the updates of one.

E is made again, with the scalings absorbed in g, where updates have moved them by 2^10: beyond,
float16 would not hold scalings. It is made for where they are going, so that they cross the whole
range with it. Updates are nonexpansive in log b, so that how far one moved bounds what is still to
come: most heads are checked once. Where that bound is beyond 2^64, inputs are bfloat16 and no duals
are kept, E and scalings are of bfloat16 too until all updates are made, and E once more of float16
for the output. Such a wide plan lasts while scalings cross 2^112; its rounding, 2^-9 of an entry,
would show in duals alone. Keys whose sums of the first column step are too small for float16 get
their largest logits as a start.

The program (`FILES`) is compiled at the first call. A test compiles the same files for a CPU, with
the instructions of `instructions.cuh` emulated. Limits: Hopper, 16-bit inputs of 32, 64 or 128
channels, `TOKENS` tokens on either side.
"""

import ctypes
import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.launch import Duals, Launch, strides
from asap_exp.ops.kernels.sinkhorn import plan_in_shared_memory
from asap_exp.ops.kernels.sinkhorn.on_chip import driver, nvrtc

FOLDER = Path(__file__).parent
FILES = ("instructions.cuh", "block.cuh", "sums.cuh", "output.cuh", "plan.cu")
"""The program, in the order of its parts; a test replaces the first."""

GRADIENT_FILES = ("instructions.cuh", "block.cuh", "sums.cuh", "adjoint.cu")
"""The program that takes a gradient through the updates."""

SIDE = 256
"""Tokens of either side that a block holds."""

TOKENS = 1024
"""Most tokens of either side: larger clusters than 16 blocks do not run."""

WIDTHS = (32, 64, 128)
"""Channels of queries, keys and values."""

THREADS = 512
"""Threads of a block."""

ALIGNMENT = 16
"""Bytes that a thread copies at a time, and so the alignment of tokens."""

NEEDED_SHARED_BYTES = "shared_bytes_needed"
"""Constant of the module that says how much shared memory a block takes."""

MOST_SHARED_BYTES = 232448
"""Most shared memory that a block may have on Hopper."""

EMPTY_PROGRAM = f"""
extern "C" __device__ const int {NEEDED_SHARED_BYTES} = {MOST_SHARED_BYTES};
extern "C" __global__ void empty() {{}}
"""
"""A program in which only loading and launching can fail."""

FEWEST_UPDATES = {1: 10, 2: 14, 3: 40, 4: 16}
"""From how many updates on it is taken, by the blocks of the longer side.

For easy logits it is the fastest route with half as many, by up to 1.6 times, but making plans of
trained models' takes as long as about ten updates of another route, and no route knows which it
gets. From here on it is at most 1.1 times as slow for a teacher without a norm on q and k, and
faster with 20. Three blocks a side leave half of a GPU idle.
"""

FEWEST_BESIDE_SHARED_PLAN = 14
"""The same for a call that `plan_in_shared_memory` takes too. With ten updates of such a teacher
that one is up to 1.17 times as fast, with twenty it is 1.09 to 1.28 times as slow.
"""

SHORTEST = 128
LEAST_USED = 0.75
"""More tokens, and from which share of the blocks' entries on, it is the fastest route."""

LEAST_RUNNING = 0.6
"""Share of the multiprocessors that clusters must be able to use; on an H200, 68 % or more."""


def refusal(call: Call) -> str | None:
    """Return why this kernel does not take the call, or None if it does."""
    if call.capability != (9, 0):
        found = (
            "Triton's interpreter" if call.capability is None else "{}.{}".format(*call.capability)
        )
        return f"is CUDA C++ for Hopper (compute capability 9.0), got {found}"
    if call.dtype == torch.float32 or call.value_dtype != call.dtype:
        names = {str(dtype).removeprefix("torch.") for dtype in (call.dtype, call.value_dtype)}
        return f"takes 16-bit inputs of one dtype, got {' and '.join(sorted(names))}"
    if call.head_dim not in WIDTHS or call.value_dim != call.head_dim:
        return (
            f"takes queries, keys and values of {', '.join(map(str, WIDTHS))} channels, got"
            f" {call.head_dim} and {call.value_dim}"
        )
    if call.longest > TOKENS:
        return f"takes up to {TOKENS} tokens, got {call.longest}"
    # `explain` also asks for GPUs that are not there.
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == call.capability:
        return lacking(blocks(call.n) * blocks(call.m), torch.cuda.current_device())
    return None


@functools.cache
def lacking(cluster_size: int, device: int) -> str | None:
    """Return what this machine lacks to compile the kernel and run it in such clusters, or None.

    A slice of a GPU, for example, may have no 16 multiprocessors that reach each other's memory.
    """
    try:
        with torch.cuda.device(device):
            empty = nvrtc.compiled(EMPTY_PROGRAM)
            found = driver.load(empty, "empty", cluster_size, THREADS, NEEDED_SHARED_BYTES)
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"Sinkhorn's plan is not kept on chip on GPU {device}, other kernels run: {error}",
            stacklevel=2,
        )
        return f"cannot run on this machine: {error}"
    running = found.clusters * cluster_size
    there = torch.cuda.get_device_properties(device).multi_processor_count
    if running < LEAST_RUNNING * there:
        return (
            f"has clusters of {cluster_size} blocks on {running} of this GPU's {there}"
            f" multiprocessors alone, and would leave the others idle"
        )
    return None


def slower(call: Call) -> str | None:
    """Return why another route is faster, or None if this one is.

    Measured on an H200 (`asap_exp.benchmark.route_times`): few updates do not earn back what making
    the plan costs, more than once where logits are large, and blocks take as long when they are
    half empty.
    """
    if call.longest <= SHORTEST:
        return f"is slower up to {SHORTEST} tokens, got {call.longest}"
    rows, cols = blocks(call.n), blocks(call.m)
    fewest = FEWEST_UPDATES[max(rows, cols)]
    if plan_in_shared_memory.refusal(call) is None:
        fewest = max(fewest, FEWEST_BESIDE_SHARED_PLAN)
    if call.num_iters < fewest:
        return f"is slower with fewer than {fewest} updates, got {call.num_iters}"
    used = call.n * call.m / (rows * cols * SIDE**2)
    if rows * cols > 1 and used < LEAST_USED:
        return (
            f"is slower with less than {LEAST_USED:.0%} of its {rows} x {cols} blocks of {SIDE} x"
            f" {SIDE} entries in use, got {used:.0%}"
        )
    return None


class Variant(NamedTuple):
    """What the kernel is compiled for."""

    grid_rows: int
    grid_cols: int
    width: int
    bfloat16: bool
    keep_duals: bool
    gradient: bool = False
    """True for the gradient through the updates, which keeps no duals."""

    @staticmethod
    def of(p: Launch, duals: Duals | None, *, gradient: bool = False) -> "Variant":
        bfloat16, keep_duals = p.q.dtype == torch.bfloat16, duals is not None
        return Variant(blocks(p.n), blocks(p.m), p.q.shape[3], bfloat16, keep_duals, gradient)

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return "adjoints_on_chip" if self.gradient else "sinkhorn_on_chip"

    @property
    def cluster_size(self) -> int:
        return self.grid_rows * self.grid_cols

    @property
    def definitions(self) -> dict[str, int]:
        """Macros that the program reads."""
        return {
            "GRID_ROWS": self.grid_rows,
            "GRID_COLS": self.grid_cols,
            "CLUSTER": self.cluster_size,
            "WIDTH": self.width,
            "BFLOAT16": int(self.bfloat16),
            "KEEP_DUALS": int(self.keep_duals),
            "GRADIENT": int(self.gradient),
        }

    def source(self) -> str:
        """Return the program."""
        lines = [f"#define {name} {value}" for name, value in self.definitions.items()]
        files = GRADIENT_FILES if self.gradient else FILES
        lines += [(FOLDER / name).read_text("utf-8") for name in files]
        return "\n".join(lines)


def blocks(tokens: int) -> int:
    """Return the blocks for one side of the plan, from 1 to 4."""
    return -(-tokens // SIDE)


class Inputs(ctypes.Structure):
    """What every program reads: addresses, strides in numbers, counts and factors."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "padding")),
        *((x + y, ctypes.c_longlong) for x in ("q", "k") for y in ("_b", "_h", "_n")),
        *((name, ctypes.c_int) for name in ("all_heads", "heads", "n", "m", "num_iters")),
        *((name, ctypes.c_float) for name in ("to_log2", "ratio")),
    ]


class Problem(Inputs):
    """The inputs and results of the updates, as their kernel reads them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("v", "out", "start", "rows", "cols")),
        *((x + y, ctypes.c_longlong) for x in ("v", "out") for y in ("_b", "_h", "_n")),
    ]


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def inputs(p: Launch) -> tuple[int | float | None, ...]:
    """Return the fields of `Inputs`; tensors have to be `aligned`, and to stay until it ends."""
    return (
        address(p.q), address(p.k), address(p.padding), *strides(p.q, p.k),
        p.programs, p.heads, p.n, p.m, p.num_iters, p.to_log2, p.n / p.m,
    )  # fmt: skip


def problem(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None) -> Problem:
    """Return the inputs of a launch; they have to be `aligned` and to stay alive until it ends."""
    kept = duals or (None, None)
    addresses = (address(x) for x in (p.v, out, start, *kept))
    return Problem(*inputs(p), *addresses, *strides(p.v, out))


def aligned(p: Launch) -> Launch:
    """Return the launch with q, k and v whose tokens begin at multiples of `ALIGNMENT` bytes."""
    q, k, v = (aligned_tokens(x) for x in (p.q, p.k, p.v))
    return p._replace(q=q, k=k, v=v)


def aligned_tokens(x: Tensor) -> Tensor:
    places = x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:3])
    if all(place % ALIGNMENT == 0 for place in places):
        return x
    return x.clone(memory_format=torch.contiguous_format)


@functools.cache
def kernel(variant: Variant, device: int) -> driver.Kernel:
    """Return the kernel on a GPU, compiled if it is not in the cache; takes seconds at first."""
    with torch.cuda.device(device):
        return driver.load(
            nvrtc.compiled(variant.source()), variant.kernel, variant.cluster_size, THREADS,
            NEEDED_SHARED_BYTES,
        )  # fmt: skip


def launch(p: Launch, start: Tensor | None, out: Tensor, duals: Duals | None = None) -> None:
    """Write `out`, and all duals if they are kept; `start` is f^0, or None for zeros."""
    p = aligned(p)
    run(Variant.of(p, duals), p, problem(p, start, out, duals))


def run(variant: Variant, p: Launch, argument: Inputs) -> None:
    """Launch the kernel, with a cluster for every head if so many fit on the GPU."""
    device = p.q.get_device()
    stream = torch.cuda.current_stream(device).cuda_stream
    kernel(variant, device).launch(p.programs, argument, stream)
