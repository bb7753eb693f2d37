"""CUDA graphs: all kernels of a call in one launch, so that host time is not measured."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

WARM_UPS = 3
"""Calls before the capture, for lazy initialisation."""


def graphed(call: Callable[[], Result], pool: Any = None) -> Callable[[], Result]:
    """Capture `call` once and return its replay, which reads and writes the same tensors.

    Graphs of one `pool` share the memory of everything but results. A replay may overwrite the
    results of a graph captured later.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # lazy initialisation must be done before the capture
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        captured = call()

    def replay() -> Result:
        graph.replay()
        return captured

    return replay
