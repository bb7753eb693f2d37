"""The stage: every method at every length, in one process, written as one record."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asap_exp.benchmark import (  # noqa: F401  (they register their methods)
    baselines,
    cheaper_gradients,
    operators,
    passes,
    peers,
)
from asap_exp.benchmark.continued import continued
from asap_exp.benchmark.flops import count, floors
from asap_exp.benchmark.inputs import Source, input_source, largest_logit_of, suite_name
from asap_exp.benchmark.measure import measure
from asap_exp.benchmark.precision import tf32
from asap_exp.benchmark.registry import (
    Method,
    Operator,
    Setting,
    build,
    installed,
    of_any_heads,
    origins,
    versions,
)
from asap_exp.benchmark.shape import Shape
from asap_exp.core.config import BenchmarkConfig, SuiteConfig
from asap_exp.core.config.shared import graphs_on
from asap_exp.core.console import progress, say
from asap_exp.core.devices import choose_device, device_name
from asap_exp.core.errors import UserError
from asap_exp.core.kept_parts import Parts
from asap_exp.core.manifest import now, outcome
from asap_exp.core.runs import drop_keys, public_config, short_hash
from asap_exp.core.sealed import sealed
from asap_exp.report.benchmark_records import FORMAT, folder_of, write_record
from asap_exp.report.benchmark_table import print_benchmark
from asap_exp.report.benchmarks import report_benchmarks
from asap_exp.timing.roofline import ceilings


def benchmark(config: BenchmarkConfig) -> Path:
    """Time the operators, and return the path of the record kept among those of the report."""
    device, config = on_device(config)
    suite, not_installed = suite_of(config, device)
    for reason in not_installed:
        say(reason)
    source = input_source(config, suite, device)
    shapes, no_inputs = split(suite, source, f"{suite_name(device)}.n")

    public = benchmark_config(config, device)
    name = benchmark_name(config, device, public, source)
    folder = folder_of(config.paths, name)
    facts = {"stage": "benchmark", "seed": config.seed, "config": public}
    with (
        continued(folder, **facts) as record,
        matrix_products(device, suite.dtype) as tf32_allowed,
    ):
        rows = rows_of(folder, record, public, suite, shapes, source, device)
        reached = rows.shared or ceilings(device, getattr(torch, suite.dtype))
        left = [shape for shape in shapes if str(shape.n) in rows.missing]
        for shape in progress(left, "Benchmarking", len(left)):
            timed = row(config, suite, shape, source, device, reached)
            rows.add(str(shape.n), timed | {"measured": now()}, reached)
        metrics = {
            "format": FORMAT,
            "name": name,
            "device": device_name(device),
            "mode": config.mode,
            "inputs": source.identity,
            "dtype": suite.dtype,
            "tf32": tf32_allowed,
            "cuda_graph": config.cuda_graph,
            "triton_interpreted": interpreted(),
            "rounds": suite.rounds,
            "tokens": suite.tokens,
            "ceilings": reached,
            "rows": rows.all(),
            "left_out": [*no_inputs, *not_installed],
            "manifest": sealed(record | outcome(record, "finished")),
        }
        # The record comes first: without it, nothing is reported as finished.
        found = write_record(folder / "metrics.json", metrics)
        rows.remove()
    print_benchmark(found)
    out = config.paths.report
    report_benchmarks(config.paths, out)
    return out / "records" / "benchmark" / f"{name}.json"


def on_device(config: BenchmarkConfig) -> tuple[torch.device, BenchmarkConfig]:
    """Return the device, and the configuration with what it leaves to the device."""
    device = choose_device(config.accelerator)
    graphs = graphs_on(device.type, config.cuda_graph, "cuda_graph")
    return device, replace(config, cuda_graph=graphs)


def suite_of(config: BenchmarkConfig, device: torch.device) -> tuple[SuiteConfig, list[str]]:
    """Return what is timed on the device, and why methods are not, which are not installed."""
    suite: SuiteConfig = getattr(config, suite_name(device))
    names, not_installed = installed(suite.methods)
    return replace(suite, methods=names), not_installed


def split(suite: SuiteConfig, source: Source, key: str) -> tuple[list[Shape], list[str]]:
    """Return the shapes of `key` that have inputs, and why the others have none."""
    shapes, left_out = [], []
    for n in suite.n:
        shape = Shape(suite.tokens // (suite.heads * n), suite.heads, n, suite.head_dim)
        refusal = source.refusal(n)
        if refusal is None:
            shapes.append(shape)
        else:
            left_out.append(refusal)
            say(refusal)
    if not shapes:
        raise UserError(f"{key}={suite.n} leaves no row to time; choose {key}=[{source.n}]")
    return shapes, left_out


def benchmark_config(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    """Return the configuration for the record, without the part for other devices."""
    other = {"gpu": "cpu", "cpu": "gpu"}[suite_name(device)]
    return drop_keys(public_config(config), (other,))


def benchmark_name(
    config: BenchmarkConfig, device: torch.device, public: dict[str, Any], source: Source
) -> str:
    """Return a name that is equal for the same settings and inputs on the same kind of device."""
    graph = ["graph"] if config.cuda_graph else []
    what = short_hash(identity(public, source))
    words = [device_name(device), config.mode, config.inputs, *graph, what]
    return re.sub("[^a-z0-9]+", "-", " ".join(words).lower())


def identity(public: dict[str, Any], source: Source) -> dict[str, Any]:
    """Return the settings and inputs that decide what is measured."""
    return {
        "config": drop_keys(public, ("accelerator", "data", "task")),
        "inputs": drop_keys(source.identity, ("data.source",)),
    }


def rows_of(
    folder: Path,
    record: dict[str, Any],
    public: dict[str, Any],
    suite: SuiteConfig,
    shapes: list[Shape],
    source: Source,
    device: torch.device,
) -> Parts:
    """Return the rows that an attempt which was stopped has left in `folder`.

    Adds the versions of the methods' libraries to `record`, the manifest of this attempt.
    """
    record["versions"] |= versions(suite.methods)
    settings = {
        **identity(public, source),
        "device": device_name(device),
        "methods": suite.methods,
        "plugins": origins(suite.methods),
        "triton_interpreted": interpreted(),
    }
    return Parts(folder, record, {str(shape.n): settings for shape in shapes}, "n = {}")


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def row(
    config: BenchmarkConfig,
    suite: SuiteConfig,
    shape: Shape,
    source: Source,
    device: torch.device,
    reached: dict[str, Any],
) -> dict[str, Any]:
    """Measure one length, and return its record: a cell for every method."""
    torch.compiler.reset()  # otherwise a second shape is compiled with symbolic sizes, and slower
    dtype: torch.dtype = getattr(torch, suite.dtype)
    train = config.mode == "train"
    inputs = source.inputs(shape, device=device, dtype=dtype, seed=config.seed, train=train)
    recorded = inputs if source.identity["kind"] == "recorded" else None
    setting = Setting(shape, device, chosen_backend(config.backend, device), config.seed, recorded)
    methods = {name: built(name, setting) for name in suite.methods}
    cells = measure(methods, inputs, rounds=suite.rounds, cuda_graph=bool(config.cuda_graph))
    counted = {
        name: None
        if method.recipe is None
        else count(method.recipe, shape, train=train, itemsize=dtype.itemsize)
        for name, method in methods.items()
    }
    return {
        **asdict(shape),
        "largest_logit": largest_logit_of(inputs),
        "cells": [
            {
                "method": name,
                "label": method.label,
                "backend": method.backend,
                **cells[name],
                **floors(counted[name], reached),
            }
            for name, method in methods.items()
        ],
    }


def built(name: str, setting: Setting) -> Method:
    """Build the method; if that fails, as fitting a map may, every call of it raises the error."""
    try:
        return build(name, setting)
    except Exception as error:
        reason = error

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise reason

    return Method(name, setting.backend, {name: Operator(attend)}, of_any_heads(attend))


def chosen_backend(backend: str, device: torch.device) -> str:
    """Return the backend, never `auto`: a column is one implementation, or says why it is not."""
    if backend != "auto":
        return backend
    return "triton" if device.type == "cuda" else "reference"


@contextmanager
def matrix_products(device: torch.device, dtype: str) -> Iterator[bool]:
    """Let plain PyTorch multiply 16-bit inputs as TF32 on a GPU; yields whether it does.

    bfloat16 and float16 numbers are exact in TF32, so the logits use tensor cores without loss; a
    float32 plan is rounded to TF32 before it is multiplied with v, and so are gradients. float32
    inputs are multiplied in IEEE float32.
    """
    allowed = device.type == "cuda" and dtype != "float32"
    with tf32(allowed):
        yield allowed
