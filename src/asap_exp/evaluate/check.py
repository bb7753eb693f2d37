"""`check=true`: all that an evaluation needs is looked at, and a few samples are measured."""

import time

from asap_exp.calibration.capture import sample_bytes
from asap_exp.core.checking import check_memory, check_place, conclude
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.console import shown
from asap_exp.core.devices import device_name
from asap_exp.core.manifest import begun
from asap_exp.core.score import Score
from asap_exp.core.team import alone
from asap_exp.data.loader import DeviceLoader
from asap_exp.evaluate.accuracy import compare_predictions
from asap_exp.evaluate.behaviour import SEVERITIES
from asap_exp.evaluate.corruption import CORRUPTIONS
from asap_exp.evaluate.kept import parts_of
from asap_exp.evaluate.resolve import resolve

FEW = 8
"""Samples that are measured."""
COPIES = 3
"""Memory of a pass relative to the inputs of all attention layers."""
PLANS, WARM_UP = 3, 3
"""Passes whose time the comparison of plans takes, and those before a latency is taken."""


def check(config: EvaluateConfig) -> Score:
    """Check the evaluation of `config` and print what would run; return the estimated time."""
    subject = resolve(config, alone(config.together))
    folder = subject.out(config)
    found = check_place(folder, 0, config.logger)
    parts = parts_of(subject, config, folder, begun(earlier_attempts=[]))
    sample = next(iter(subject.test.first(1, 1)))
    largest = max(config.batch_size, config.latency.batch_size)
    memory = check_memory(
        COPIES * largest * sample_bytes(subject.net, sample, subject.precision),
        subject.device,
        "choose a smaller batch_size or latency.batch_size",
    )
    few = subject.test.first(FEW, FEW)
    compare_predictions(subject.variants, subject.test.first(1, 1), subject.precision)
    started = time.perf_counter()
    compare_predictions(subject.variants, few, subject.precision)
    per_sample = (time.perf_counter() - started) / min(FEW, few.num_samples)
    passes = {
        "predictions": subject.test.num_samples,
        "plans": PLANS * config.fidelity_samples,
        "speed": (config.latency.rounds + WARM_UP) * config.latency.batch_size,
    }
    if config.behaviour and isinstance(subject.test, DeviceLoader):
        passes["behaviour"] = len(CORRUPTIONS) * len(SEVERITIES) * subject.test.num_samples
    return conclude(
        {
            "map": shown(subject.folder),
            "data": f"{subject.test.num_samples:,} test {subject.data.sample_name}",
            "device": device_name(subject.device),
            "memory": memory,
            **found,
        },
        per_sample * sum(passes.get(part, 0) for part in parts.missing),
        f"{len(subject.variants)} models on {subject.test.num_samples:,} "
        f"{subject.data.sample_name}",
    )
