"""`check=true`: all that a compilation needs is looked at, and a few samples are fitted."""

import time
from dataclasses import replace
from typing import Any

from asap_exp.attention import SoftmaxAttention, attention_layers
from asap_exp.calibration.calibrate import calibrate
from asap_exp.calibration.capture import sample_bytes, sinkhorn
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.truncation import truncations
from asap_exp.core.checking import check_memory, check_place, conclude, nothing_to_do
from asap_exp.core.config import BudgetConfig
from asap_exp.core.console import Progress, shown
from asap_exp.core.devices import device_name
from asap_exp.core.score import Score
from asap_exp.core.team import alone
from asap_exp.data.loader import BatchLoader
from asap_exp.distill.budget import TEACHER, check_budget, out_of_reach
from asap_exp.distill.candidates import ValidationScorer
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import Asked, asked, is_compiled, loaders
from asap_exp.distill.without_fit import coarse_asked

FEW, MORE, QUICK_SECONDS = 8, 32, 2.0
"""Samples that are fitted and on which fits are checked; more by gradient if the few are quick."""
UPDATES = (1, 4)
"""Numbers of updates whose times are compared."""
ROUNDS, CERTAIN = 5, 1.2
"""Rounds in which the fastest attention is timed, and how far it must miss a budget to be sure."""
COPIES = 3
"""Memory of a pass relative to the inputs of all attention layers."""


def check(config: DistillConfig) -> Score:
    """Check the compilation of `config` and print what would run; return the estimated time."""
    if not config.calibration.fits:
        return check_without_fit(config)
    subject = asked(config, alone(config.together))
    calibration, device = subject.config.fitted, subject.device
    found = check_place(subject.folder, 0, config.logger)
    if is_compiled(subject.folder, subject.run, subject.net, subject.data):
        return nothing_to_do()
    fit, held_out = loaders(subject)
    sample = next(iter(fit.first(1, 1)))
    precision = subject.run.config.trainer.precision
    memory = check_memory(
        COPIES * calibration.batch_size * sample_bytes(subject.net, sample, precision),
        device,
        "choose a smaller calibration.batch_size",
    )
    data = CalibrationData(
        subject.net,
        fit.first(FEW, FEW),
        held_out.first(FEW, FEW),
        calibration,
        precision,
        progress=Progress(shown=False),
    )
    if config.budget.asked:
        check_reachable(config.budget, data, subject)
    seconds = fit_seconds(data, subject.paths, fit, held_out)
    if config.budget.asked:
        seconds *= len(config.budget.slices) * len(config.budget.refine)
    return conclude(
        {
            "teacher": shown(subject.run.path),
            "data": f"{fit.num_samples:,} samples to fit on, {held_out.num_samples:,} to check on",
            "device": device_name(device),
            "memory": memory,
            **found,
        },
        seconds,
        f"{' + '.join(calibration.steps)} on {len(subject.paths)} layers"
        + (", timing of a budget not counted" if config.budget.asked else ""),
    )


def check_without_fit(config: DistillConfig) -> Score:
    """Check that coarse duals can take the teacher's place; no data is read, and nothing timed."""
    wanted = coarse_asked(config)
    found = check_place(wanted.folder, 0, config.logger)
    if wanted.is_made():
        return nothing_to_do()
    return conclude(
        {"teacher": shown(wanted.run.path), **found},
        0.0,
        f"{config.calibration.name} on {len(wanted.attends)} layers, no fit",
    )


def check_reachable(budget: BudgetConfig, data: CalibrationData, subject: Asked) -> None:
    """Raise UserError if the fastest attention, timed on a few samples, misses a budget clearly."""
    batches = subject.data.val_dataloader()
    check_budget(budget, data, subject.data, batches.num_samples)
    if budget.latency_ratio is None:
        return
    size = budget.latency.batch_size if subject.device.type == "cuda" else FEW
    size = min(size, budget.latency.batch_size)
    timing = replace(budget.latency, batch_size=size, rounds=ROUNDS)
    scorer = ValidationScorer(data, batches.first(size, size), replace(budget, latency=timing))
    layers = attention_layers(subject.net)
    plans: dict[str, dict[str, Any]] = {
        TEACHER: {},
        "softmax": {path: SoftmaxAttention() for path in subject.paths},
    }
    for cut in truncations(budget):
        plans[cut.label] = {p: cut.attention(sinkhorn(layers[p]).eps) for p in subject.paths}
    ms = scorer.model_ms(plans)
    least = min(ms.values()) / ms[TEACHER]
    if least > CERTAIN * budget.latency_ratio:
        raise out_of_reach(budget.latency_ratio, least)


def fit_seconds(
    data: CalibrationData, paths: list[str], fit: BatchLoader, held_out: BatchLoader
) -> float:
    """Fit a few samples and return an estimate for all.

    The first step takes a time for each sample, the others for each update and sample of a batch.
    """
    config = data.config
    first = with_updates(replace(config, steps=config.steps[:1]), 1)
    begun = timed_fit(replace(data, config=first), paths)
    seconds = begun * max((fit.num_samples + held_out.num_samples) / (2 * FEW), 1)
    if not (steps := settings(config)):
        return seconds
    size = min(MORE if begun < QUICK_SECONDS else FEW, config.batch_size)
    data = replace(data, fit=fit.first(size, size))
    short, long = (
        timed_fit(replace(data, config=with_updates(config, count)), paths) for count in UPDATES
    )
    per_update = max(long - short, 0) / (UPDATES[1] - UPDATES[0]) / len(steps)
    updates = sum(each.updates for each in steps.values())
    return seconds + per_update * updates * config.batch_size / size


def with_updates(config: CalibrationConfig, count: int) -> CalibrationConfig:
    return replace(config, **{k: replace(v, updates=count) for k, v in settings(config).items()})


def settings(config: CalibrationConfig) -> dict[str, Any]:
    """Return the settings of the steps that take a number of updates."""
    found = {name: getattr(config, name, None) for name in config.steps}
    return {name: each for name, each in found.items() if hasattr(each, "updates")}


def timed_fit(data: CalibrationData, paths: list[str]) -> float:
    started = time.perf_counter()
    calibrate(data, paths)
    return time.perf_counter() - started
