"""CUDA graphs: all kernels of a call in one launch, so that the host's time does not count."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from asap_exp.core.console import say
from asap_exp.core.errors import UserError

Result = TypeVar("Result")

WARM_UPS = 3
"""Calls before the capture: they compile, choose kernels and initialise what is lazy."""

MOST_GRAPHS = 128
"""Graphs that one user of a Recorder keeps; calls on further shapes run kernel by kernel."""


def graphed(call: Callable[[], Result], pool: Any = None) -> Callable[[], Result]:
    """Warm `call` up, then capture it once and return its replay.

    Graphs of one `pool` share the memory of everything but results. A replay may overwrite the
    results of a graph captured later.
    """
    for _ in range(WARM_UPS):
        beside(call)
    return recorded(call, pool)


def beside(call: Callable[[], Result], stream: torch.cuda.Stream | None = None) -> Result:
    """Run `call` on a side stream, as PyTorch asks of what is captured later, in order."""
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = call()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def recorded(call: Callable[[], Result], pool: Any = None) -> Callable[[], Result]:
    """Capture `call`, which has run before, and return its replay on the same tensors."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        captured = call()

    def replay() -> Result:
        graph.replay()
        return captured

    return replay


class Recorder:
    """Recording of calls in one pool of memory, until one of them cannot be recorded."""

    def __init__(
        self,
        *,
        required: bool = False,
        record: Callable[[Callable[[], Any], Any], Callable[[], Any]] = recorded,
    ) -> None:
        """Set up the recording; if it is `required`, a call that cannot be recorded is an error."""
        self.required, self.works, self._record = required, True, record
        self.renew()
        self.count = 0

    def renew(self) -> None:
        """Start another pool of memory: one whose graphs are all gone cannot be used again."""
        self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    def __call__(self, call: Callable[[], Result]) -> Callable[[], Result] | None:
        """Return the replay of `call`, or None, and say once why, if it cannot be recorded."""
        try:
            replay = self._record(call, self._pool)
        except RuntimeError as error:
            if self.required:
                raise UserError(
                    "trainer.cuda_graphs=true, but a step cannot be recorded as a CUDA graph: "
                    f"{first_line(error)}. Set it to null or false"
                ) from error
            self.works = False
            say(f"Running without CUDA graphs: one cannot be recorded ({first_line(error)})")
            return None
        self.count += 1
        return replay


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
