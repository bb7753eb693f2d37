"""Latency as ratios within one process: interleaved methods, medians and quartiles."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch

Call = Callable[[], object]
Prepare = Callable[[], AbstractContextManager[Call]]
"""Context manager that sets up a call outside the clock and yields it."""

SHORTEST_SAMPLE_SECONDS = 2e-3
"""Shorter calls are repeated within one sample, so that the clock's own cost does not count."""

SLOW_SECONDS = 5e-2
"""Calls slower than this get no second warm-up."""


def interleaved_latency(
    calls: Mapping[str, Prepare],
    device: torch.device,
    *,
    rounds: int,
    slow_rounds: int | None = None,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Return milliseconds per call: `median`, `q1` and `q3` over `rounds`.

    After a warm-up every call runs once per round, in a seeded random order that differs between
    rounds. With `slow_rounds`, a slow call runs in only about that many rounds, evenly spread. With
    `failed`, a call that raises is reported to it and left out; without it the exception
    propagates.
    """
    durations: dict[str, float] = {}
    stride = 1 if slow_rounds is None else max(1, rounds // slow_rounds)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)

    def attempt(name: str, step: Callable[[str], None]) -> None:
        try:
            step(name)
        except Exception as error:
            if failed is None:
                raise
            del samples[name]
            failed(name, error)

    def warm(name: str) -> None:
        durations[name] = warm_up(calls[name], device)

    def sample(name: str) -> None:
        with calls[name]() as call:
            samples[name].append(seconds(call, device, repeats(durations[name])) * 1e3)

    for name in order:
        attempt(name, warm)
    shuffler = random.Random(0)
    for number in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            skipped = durations.get(name, 0.0) > SLOW_SECONDS and number % stride
            if name in samples and not skipped:
                attempt(name, sample)
    return {name: quartiles(values) for name, values in samples.items()}


def warm_up(prepare: Prepare, device: torch.device) -> float:
    """Run a call a few times and return the seconds of the last one."""
    with prepare() as call:
        call()
        duration = seconds(call, device, 1)
        if duration < SLOW_SECONDS:
            duration = seconds(call, device, 1)
    return duration


def repeats(duration: float) -> int:
    """Return how many calls of `duration` seconds form one sample."""
    return max(1, math.ceil(SHORTEST_SAMPLE_SECONDS / max(duration, 1e-7)))


def seconds(call: Call, device: torch.device, times: int) -> float:
    """Return the seconds per call, averaged over `times` consecutive calls."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / times
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def quartiles(values: list[float]) -> dict[str, float]:
    """Return `median`, `q1` and `q3`."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}
