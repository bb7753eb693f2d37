"""Choice of device and precision."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from asap_exp.core.console import debug
from asap_exp.core.errors import UserError
from asap_exp.core.memory import available_memory

AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_device(accelerator: str, key: str = "accelerator") -> torch.device:
    """Return the device of `accelerator`; `auto` takes a CUDA GPU if there is one.

    Raises UserError if a GPU is asked for, by this `key`, and PyTorch sees none.
    """
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise UserError(
            f"{key}=gpu was asked for, but PyTorch sees no CUDA device; choose {key}=cpu or auto"
        )
    device = torch.device("cuda" if available and accelerator != "cpu" else "cpu")
    debug(f"device: {device_name(device)}, PyTorch {torch.__version__}")
    return device


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first weight or buffer; the CPU for a model without any."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def device_name(device: torch.device) -> str:
    """Return the name of the device for records."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def memory_left(device: torch.device) -> int:
    """Return the bytes of memory that a GPU has left, or this process where there is none."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def use_cpu_threads(threads: int | None) -> None:
    """Set PyTorch's CPU threads for this process; None leaves them unchanged."""
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Use so many CPU threads while the context is open; None leaves them unchanged."""
    before = torch.get_num_threads()
    use_cpu_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_precision(precision: str, device: torch.device) -> str:
    """Return Lightning's precision; `auto` is bf16-mixed on a GPU and 32-true on a CPU."""
    if precision == "16-mixed" and device.type == "cpu":
        raise UserError(
            "trainer.precision=16-mixed needs a GPU; on a CPU choose bf16-mixed or 32-true"
        )
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which to run a model trained with `precision`."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
