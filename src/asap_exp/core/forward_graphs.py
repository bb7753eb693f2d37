"""Forward passes recorded as CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.core.cuda_graph import MOST_GRAPHS, Recorder
from asap_exp.core.fixed_tensors import FixedTensors, Shape, shape_of


class ForwardGraphs:
    """`forward` without gradients, from a tree of tensors to a tensor `[B, ...]`.

    Each shape of the input runs once and is recorded when it comes again. A single tensor of fewer
    rows than one recorded before is filled up, so that the last batch needs no graph of its own:
    rows must not depend on each other.

    Compiled modules run kernel by kernel: a graph needs no compilation to be quick to start, and a
    compilation takes longer than it saves here.

    A result is overwritten by the next call. The weights may change in place between calls, but no
    option of the network or of autocast may.
    """

    def __init__(self, forward: Callable[[Any], Tensor], recorder: Recorder) -> None:
        self.forward, self.recorder = forward, recorder
        self._seen: set[Shape] = set()
        self._fixed: dict[Shape, FixedTensors] = {}
        self._replays: dict[Shape, Callable[[], Tensor]] = {}

    def __call__(self, inputs: Any) -> Tensor:
        """Return `forward(inputs)`."""
        filled = self._filled(inputs)
        result = self._run(filled)
        return result if filled is inputs else result[: len(inputs)]

    def _run(self, inputs: Any) -> Tensor:
        shape = shape_of(inputs)
        if shape in self._replays:
            self._fixed[shape].fill(inputs)
            return self._replays[shape]()
        full = not self.recorder.works or len(self._replays) >= MOST_GRAPHS
        if shape not in self._seen or full:
            self._seen.add(shape)
            return self._forward(inputs)
        fixed = FixedTensors(inputs)
        torch.clear_autocast_cache()  # a cast made before the capture would never be made again
        replay = self.recorder(lambda: self._forward(fixed.tree))
        torch.clear_autocast_cache()
        if replay is None:
            return self._forward(inputs)
        self._fixed[shape], self._replays[shape] = fixed, replay
        return replay()

    def _forward(self, inputs: Any) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return self.forward(inputs)

    def _filled(self, inputs: Any) -> Any:
        """Return a tensor with as many rows as a recorded one that differs in nothing else."""
        if not isinstance(inputs, Tensor) or shape_of(inputs) in self._replays:
            return inputs
        for fixed in self._fixed.values():
            tensor = fixed.tree
            if not isinstance(tensor, Tensor) or tensor.dtype != inputs.dtype:
                continue
            missing = len(tensor) - len(inputs)
            if missing > 0 and tensor.shape[1:] == inputs.shape[1:]:
                return F.pad(inputs, (0, 0) * (inputs.ndim - 1) + (0, missing))
        return inputs
