"""Latency as ratios within one process: methods interleaved, medians and quartiles."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch

Call = Callable[[], object]
Prepare = Callable[[], AbstractContextManager[Call]]
"""Opens what a call needs, outside the clock, and gives the call."""

SHORTEST_SAMPLE_SECONDS = 2e-3
"""A call shorter than this is repeated within one sample, so that the clock is no part of it."""


def interleaved_latency(
    calls: Mapping[str, Prepare],
    device: torch.device,
    *,
    rounds: int,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Milliseconds a call: `median`, `q1` and `q3` over `rounds`.

    Every call runs once a round, in an order drawn anew each round (seeded), after a warm-up. With
    `failed`, a call that raises is reported to it and left out; without, its exception goes on.
    """
    repeats: dict[str, int] = {}
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
        repeats[name] = warm_up(calls[name], device)

    def sample(name: str) -> None:
        with calls[name]() as call:
            samples[name].append(seconds(call, device, repeats[name]) * 1e3)

    for name in order:
        attempt(name, warm)
    shuffler = random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            if name in samples:
                attempt(name, sample)
    return {name: quartiles(values) for name, values in samples.items()}


def warm_up(prepare: Prepare, device: torch.device) -> int:
    """Runs a call a few times; how often a sample must repeat it."""
    with prepare() as call:
        for _ in range(2):
            call()
        duration = seconds(call, device, 1)
    return max(1, math.ceil(SHORTEST_SAMPLE_SECONDS / max(duration, 1e-7)))


def seconds(call: Call, device: torch.device, repeats: int) -> float:
    """Seconds a call, over `repeats` calls in a row."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def quartiles(values: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}
