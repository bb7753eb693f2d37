"""Training steps recorded as CUDA graphs, so that the host starts one instead of its kernels."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asap_exp.core.cuda_graph import MOST_GRAPHS, WARM_UPS, Recorder, beside
from asap_exp.core.device_rates import rates_on_device, set_rates
from asap_exp.core.fixed_tensors import FixedTensors, Shape, shape_of
from asap_exp.data.loader import Batch
from asap_exp.engine.masked_portions import rounded_up


class Recorded:
    """Step on batches of one shape: the tensors it reads, and its replay once it is recorded."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.fixed = FixedTensors(batch)
        self.failed = torch.zeros((), dtype=torch.bool, device=device)
        """True if it was a batch of this shape whose loss was not finite."""
        self.runs = 0
        self.replay: Callable[[], None] | None = None


class StepGraphs:
    """Steps of a training: gradients, clipping and the update, in one graph per shape of batch.

    After a loss that is not finite no step changes the weights or the batch any more, so that the
    host may look later, with `raise_if_failed`, and finds the batch and the weights of that step.

    A fused optimiser of PyTorch is part of the graph, with its learning rate read from a tensor.
    Any other one updates after the graph, once the host has waited for the loss.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: Callable[[Batch], Tensor],
        clip: Callable[[], None],
        failure: Callable[[Batch, int], Exception],
        recorder: Recorder,
        *,
        first_step: int = 0,
    ) -> None:
        """Set up the steps of `optimizer`.

        `gradients` adds the gradients of a batch to the weights and returns its loss; `clip` clips
        them; `failure` makes the error of a batch whose loss is not finite, at a step counted from
        `first_step`.
        """
        self.optimizer, self.gradients, self.clip = optimizer, gradients, clip
        self.failure, self.recorder, self.first_step = failure, recorder, first_step
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = self.device = self.parameters[0].device
        self.whole = all(group.get("fused") for group in optimizer.param_groups)
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.loss = torch.zeros((), device=device)
        self.failed = torch.zeros((), dtype=torch.bool, device=device)
        self.found_inf = torch.zeros((), device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.kept = [] if self.whole else [torch.zeros_like(p) for p in self.parameters]
        self.shapes: dict[Shape, Recorded] = {}
        self.options = self._options()
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.seconds = 0.0
        """Time of the host in steps that compiled or were recorded."""

    @property
    def count(self) -> int:
        """Number of recorded graphs."""
        return sum(each.replay is not None for each in self.shapes.values())

    def step(self, batch: Batch) -> Tensor:
        """Make one update and return the loss, a scalar on the device.

        Raises the error of `failure` if the optimiser waits for the loss and that is not finite.
        """
        if self.options != (options := self._options()):
            self.raise_if_failed()
            self.options = options
            self.shapes.clear()  # a changed option is part of every recorded step
            self.recorder.renew()
        batch = rounded_up(batch)
        shape = shape_of(batch)
        if (entry := self.shapes.get(shape)) is None:
            entry = self.shapes[shape] = Recorded(batch, self.device)
        entry.fixed.fill(batch, self.failed)
        set_rates(self.optimizer, self.rates)
        if self.kept and self.parameters[0].grad is not self.kept[0]:
            # Lightning drops the gradients before a validation.
            for parameter, gradient in zip(self.parameters, self.kept, strict=True):
                parameter.grad = gradient
        self._run(entry)
        if not self.whole:
            self.raise_if_failed()
            self.optimizer.step()
        return self.loss.clone()

    def raise_if_failed(self) -> None:
        """Wait for the last step and raise the error of the one whose loss was not finite."""
        if self.failed:
            self.fail()

    def fail(self) -> None:
        """Raise the error of the step whose loss was not finite."""
        entry = next(each for each in self.shapes.values() if each.failed)
        raise self.failure(entry.fixed.tree, self.first_step + int(self.good_steps))

    def _run(self, entry: Recorded) -> None:
        entry.runs += 1
        if entry.replay is not None:
            entry.replay()
            return
        start = time.perf_counter()
        step = partial(self._step, entry)
        records = self.recorder.works and self.count < MOST_GRAPHS
        if records and entry.runs > WARM_UPS:
            entry.replay = self.recorder(step)
        if entry.replay is not None:
            entry.replay()
        else:
            step() if self.stream is None else beside(step, self.stream)
        if records:
            self.seconds += time.perf_counter() - start

    def _step(self, entry: Recorded) -> None:
        """Run one step; whatever it reads and writes stays at its place."""
        if self.whole:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            torch._foreach_zero_(self.kept)
        with torch.autocast(self.device.type, enabled=False):
            loss = self.gradients(entry.fixed.tree)
        torch.clear_autocast_cache()  # the casts made inside belong to this step alone
        bad = ~torch.isfinite(loss)
        entry.failed |= bad & ~self.failed
        self.failed |= bad
        self.good_steps += ~self.failed
        self.loss.copy_(loss)
        self.clip()
        if self.whole:
            self.found_inf.copy_(self.failed)
            with rates_on_device(self.optimizer, self.rates, self.found_inf):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _options(self) -> list[dict[str, Any]]:
        """Return what a recorded step holds of the optimiser, besides the rates."""
        return [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            | {"params": len(group["params"])}
            for group in self.optimizer.param_groups
        ]
