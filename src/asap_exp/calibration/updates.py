"""Adam's updates in a fit by gradient; on a GPU each is one CUDA graph."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from asap_exp.core.agreement import alone, total
from asap_exp.core.cuda_graph import WARM_UPS, Recorder, beside
from asap_exp.core.device_rates import rates_on_device, set_rates
from asap_exp.core.fixed_tensors import FixedTensors, Shape, shape_of

PLAIN = (bool, int, float, str, type(None))
"""Types of what may stand beside the tensors of an item; equal values share a graph."""


class CosineAdam:
    """Adam that lowers `loss` of an item; its rate falls from `lr` to 0 on a cosine over `updates`.

    Items are trees of tensors. Where they are on a GPU, updates on items of one shape are recorded
    as a CUDA graph; what cannot be recorded runs kernel by kernel, as do the updates of several
    ranks, whose gradients are added up.
    """

    def __init__(
        self,
        loss: Callable[[Any], Tensor],
        parameters: Iterable[nn.Parameter],
        lr: float,
        updates: int,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        """Set up the updates; a `recorder` is made on a GPU."""
        self.loss, self.parameters = loss, list(parameters)
        device = self.parameters[0].device
        if recorder is None and device.type == "cuda" and alone():
            recorder = Recorder()
        self.recorder = recorder
        self.adam = torch.optim.Adam(self.parameters, lr=lr, fused=True if recorder else None)
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, updates)
        self._rates = [torch.zeros((), device=device)]
        self._runs: dict[Shape, int] = {}
        self._recorded: dict[Shape, tuple[FixedTensors, Callable[[], None]]] = {}

    def update(self, item: Any) -> None:
        """Make one update; gradients go into these parameters and nowhere else."""
        if self.recorder is None:
            self._step(item)
        else:
            set_rates(self.adam, self._rates)
            with rates_on_device(self.adam, self._rates):
                self._recorded_step(item, self.recorder)
        self.cosine.step()

    def _recorded_step(self, item: Any, recorder: Recorder) -> None:
        if recorder.works and self._can_be_copied(item):
            shape = shape_of(item)
            runs = self._runs[shape] = self._runs.get(shape, 0) + 1
            if shape not in self._recorded and runs > WARM_UPS:
                fixed = FixedTensors(item)
                replay = recorder(lambda: self._step(fixed.tree))
                if replay is not None:
                    self._recorded[shape] = fixed, replay
            if shape in self._recorded:
                fixed, replay = self._recorded[shape]
                fixed.fill(item)
                replay()
                return
        if self.parameters[0].is_cuda:
            beside(lambda: self._step(item))
        else:
            self._step(item)

    def _step(self, item: Any) -> None:
        gradients = added(torch.autograd.grad(self.loss(item), self.parameters))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.adam.step()
        self.adam.zero_grad()

    def _can_be_copied(self, item: Any) -> bool:
        """Return True if an item holds tensors where the parameters are, and plain values."""
        device = self.parameters[0].device
        return all(
            x.device == device if isinstance(x, Tensor) else isinstance(x, PLAIN)
            for x in tree_leaves(item)
        )


def added(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the sums of gradients over all ranks, which are exchanged as one tensor."""
    if alone():
        return gradients
    flat = total(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(one) for part, one in zip(parts, gradients, strict=True)]
