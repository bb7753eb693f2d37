"""The pace of a training: time per step, the device's share in it, and what a step computes."""

import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from torch.autograd.profiler import DeviceType
from torch.profiler import ProfilerActivity, profile

from asap_exp.data.tokens import TokenBatch

CALM_STEPS = 20
"""Steps without one that compiles or is recorded, after which a training counts as warm."""

MOST_WARM_UP = 2_000
"""Steps after which the clock starts even if some shape of batch is still new."""

Shape = tuple[int, ...]


@dataclass
class Pace:
    """Measurements of a training after its warm-up."""

    steps: int = 0
    seconds: float = 0.0
    median_ms: float | None = None
    """Median time between the ends of steps: unlike the mean it shows no single stall."""
    samples: int = 0
    shapes: Counter[Shape] = field(default_factory=Counter)
    """Number of steps by the shape of their inputs."""
    warm_up_steps: int = 0
    warm_up_seconds: float = 0.0
    profiled_steps: int = 0
    device_seconds: float | None = None
    """Time in which a kernel ran, during the profiled steps; None on a CPU."""
    profiled_seconds: float | None = None
    """Time from the first of those kernels to the end of the last."""
    launches: int | None = None
    """Kernels and copies of the profiled steps."""
    peak_memory: int | None = None
    """Most bytes of device memory that tensors took at once."""

    @property
    def step_ms(self) -> float:
        return self.seconds / self.steps * 1e3

    @property
    def device_ms(self) -> float | None:
        """Milliseconds per step in which a kernel ran."""
        if self.device_seconds is None:
            return None
        return self.device_seconds / self.profiled_steps * 1e3

    @property
    def busy(self) -> float | None:
        """Share of the profiled steps in which the device ran a kernel.

        The profiler slows the host, so the share without it is no smaller.
        """
        if self.device_seconds is None or not self.profiled_seconds:
            return None
        return self.device_seconds / self.profiled_seconds


class StepTimer(L.Callback):
    """Callback that times `steps` steps of a warm training, profiles some more, and stops it."""

    def __init__(self, *, warm_up: int, steps: int, profiled: int) -> None:
        self.warm_up, self.steps, self.profiled = warm_up, steps, profiled
        self.pace = Pace()
        self._calm, self._recording = 0, 0.0
        self._start = 0.0
        self._ends: list[torch.cuda.Event | float] = []
        self._profile: profile | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        pace, cuda = self.pace, pl_module.device.type == "cuda"
        if not self._start:
            if self._warm(trainer.global_step, pl_module):
                wait(cuda)
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                pace.warm_up_steps = trainer.global_step
                self._recording = seconds_recording(pl_module)
                self._start = time.perf_counter()
                self._ends = [now(cuda)]
                pace.warm_up_seconds = self._start - self._begin
        elif pace.steps < self.steps:
            pace.steps += 1
            pace.samples += len(batch[0])
            pace.shapes[shape_of_inputs(batch[0])] += 1
            self._ends.append(now(cuda))
            if pace.steps == self.steps:
                wait(cuda)
                recorded = seconds_recording(pl_module) - self._recording
                pace.seconds = time.perf_counter() - self._start - recorded
                pace.median_ms = median_ms(self._ends)
                if cuda:
                    pace.peak_memory = torch.cuda.max_memory_allocated()
                    self._profile = profile(activities=[ProfilerActivity.CUDA])
                    self._profile.__enter__()
                else:
                    trainer.should_stop = True
        elif self._profile is not None:
            pace.profiled_steps += 1
            if pace.profiled_steps == self.profiled:
                wait(cuda)
                self._profile.__exit__(None, None, None)
                found = kernel_times(self._profile)
                pace.device_seconds, pace.profiled_seconds, pace.launches = found
                trainer.should_stop = True

    def _warm(self, steps: int, module: L.LightningModule) -> bool:
        seconds = seconds_recording(module)
        calm, self._recording = seconds == self._recording, seconds
        self._calm = self._calm + 1 if calm else 0
        wanted = CALM_STEPS if seconds else 0
        return steps >= self.warm_up and (self._calm >= wanted or steps >= MOST_WARM_UP)


def seconds_recording(module: L.LightningModule) -> float:
    recorded = getattr(module, "recorded", None)
    return 0.0 if recorded is None else recorded.seconds


def now(cuda: bool) -> torch.cuda.Event | float:
    """Return the time, or on a GPU an event that has it once the work before is done."""
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def median_ms(times: list[torch.cuda.Event | float]) -> float:
    """Return the median of the times between neighbours, all of which have come."""
    return statistics.median(milliseconds(start, end) for start, end in pairwise(times))


def milliseconds(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return 1e3 * (end - start)
    return start.elapsed_time(end)


def wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def shape_of_inputs(inputs: Any) -> Shape:
    return tuple((inputs.ids if isinstance(inputs, TokenBatch) else inputs).shape)


def kernel_times(profiled: profile) -> tuple[float, float, int]:
    """Return the time in which a kernel or copy ran, that from first to last, and their number."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == DeviceType.CUDA
    )
    if not spans:
        return 0.0, 0.0, 0
    total, begin = 0.0, spans[0][0]
    reached = begin
    for start, end in spans:
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total / 1e6, (reached - begin) / 1e6, len(spans)
