"""`check=true`: all that a benchmark needs is looked at, and one sample passes each operator."""

import time
from dataclasses import replace

import torch

from asap_exp.benchmark.benchmark import (
    benchmark_config,
    benchmark_name,
    built,
    chosen_backend,
    on_device,
    rows_of,
    split,
    suite_of,
)
from asap_exp.benchmark.calls import results
from asap_exp.benchmark.inputs import Inputs, input_source, suite_name
from asap_exp.benchmark.measure import PATIENCE_SECONDS
from asap_exp.benchmark.registry import Method, Setting
from asap_exp.benchmark.shape import Shape
from asap_exp.benchmark.steps import rows_of as step_rows_of
from asap_exp.benchmark.steps import step_name, steps_config, trainings_and_data
from asap_exp.core.checking import check_place, conclude
from asap_exp.core.config import BenchmarkConfig
from asap_exp.core.devices import choose_device, device_name
from asap_exp.core.manifest import begun
from asap_exp.core.score import Score
from asap_exp.engine.building import set_micro_batch
from asap_exp.engine.module import Classifier
from asap_exp.models import build_net
from asap_exp.report.benchmark_records import folder_of
from asap_exp.report.step_records import folder_of as step_folder_of

WARM_UP = 3
"""Calls of each method before its time is taken."""


def check(config: BenchmarkConfig) -> Score:
    """Check the benchmark of `config` and print what would run; return the estimated time."""
    return check_steps(config) if config.mode == "step" else check_operators(config)


def check_operators(config: BenchmarkConfig) -> Score:
    """Call every method on one sample of the shortest length; the time grows with its square."""
    device, config = on_device(config)
    suite, _ = suite_of(config, device)
    source = input_source(config, suite, device)
    shapes, _ = split(suite, source, f"{suite_name(device)}.n")
    public = benchmark_config(config, device)
    folder = folder_of(config.paths, benchmark_name(config, device, public, source))
    found = check_place(folder, 0)
    rows = rows_of(folder, begun(earlier_attempts=[]), public, suite, shapes, source, device)
    least = replace(min(shapes, key=lambda shape: shape.n), batch=1)
    inputs = source.inputs(
        least,
        device=device,
        dtype=getattr(torch, suite.dtype),
        seed=config.seed,
        train=config.mode == "train",
    )
    recorded = inputs if source.identity["kind"] == "recorded" else None
    setting = Setting(least, device, chosen_backend(config.backend, device), config.seed, recorded)
    left = [shape for shape in shapes if str(shape.n) in rows.missing]
    seconds, failed = 0.0, []
    for method in suite.methods:
        try:
            once = call_seconds(built(method, setting), inputs)
        except Exception as error:  # the benchmark shows it in the method's cell
            failed.append(f"{method} ({' '.join(str(error).split())[:100]})")
            continue
        calls = suite.rounds + WARM_UP
        seconds += sum(calls * min(once * times(s, least), PATIENCE_SECONDS) for s in left)
    return conclude(
        {
            "device": device_name(device),
            "methods": ", ".join(suite.methods),
            **({"failing": "; ".join(failed)} if failed else {}),
            **found,
        },
        seconds,
        f"{len(suite.methods)} methods, {config.mode}, at n = {[shape.n for shape in left]}",
    )


def times(shape: Shape, least: Shape) -> float:
    """Return how many times as long a call takes as one of `least`."""
    return shape.batch * (shape.n / least.n) ** 2


def call_seconds(method: Method, inputs: Inputs) -> float:
    """Return the seconds of the second call of a method's operators together."""
    seconds = 0.0
    for operator in method.operators.values():
        results(operator.attend, inputs)
        started = time.perf_counter()
        results(operator.attend, inputs)
        seconds += time.perf_counter() - started
    return seconds


def check_steps(config: BenchmarkConfig) -> Score:
    """Measure one step on one sample for each attention, as a training does before it starts."""
    device = choose_device(config.accelerator)
    public = steps_config(config)
    folder = step_folder_of(config.paths, step_name(config, device, public))
    found = check_place(folder, 0)
    trainings, data = trainings_and_data(config, device)
    rows = step_rows_of(folder, begun(earlier_attempts=[]), public, trainings, data, device)
    seconds = 0.0
    for attention in rows.missing:
        training = trainings[attention]
        module = Classifier(
            build_net(training),
            training.recipe,
            num_classes=data.num_classes,
            seed=training.seed,
            objective=training.objective,
        )
        started = time.perf_counter()
        set_micro_batch(training, module, data, device)
        calls = config.step.warm_up + config.step.steps + config.step.profiled
        seconds += (time.perf_counter() - started) * training.recipe.batch_size * calls
    return conclude(
        {"device": device_name(device), "attentions": ", ".join(config.step.attentions), **found},
        seconds,
        f"{config.step.steps} steps of {config.task.name} with {', '.join(rows.missing)}",
    )
