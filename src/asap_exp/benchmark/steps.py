"""`mode=step`: the pace of training a task's model, with one attention after another."""

import gc
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asap_exp.benchmark.continued import continued
from asap_exp.benchmark.registry import origins
from asap_exp.core.composing import compose
from asap_exp.core.config import BenchmarkConfig, TrainConfig
from asap_exp.core.console import say
from asap_exp.core.devices import AUTOCAST_DTYPES, choose_device, choose_precision, device_name
from asap_exp.core.errors import UserError
from asap_exp.core.kept_parts import Parts
from asap_exp.core.manifest import now, outcome
from asap_exp.core.runs import Run, drop_keys, public_config, short_hash
from asap_exp.core.sealed import sealed
from asap_exp.data import TaskDataModule, build_data
from asap_exp.data.loader import Batch
from asap_exp.data.tokens import TokenBatch
from asap_exp.engine.building import build_trainer, quiet_lightning, set_micro_batch
from asap_exp.engine.module import Classifier
from asap_exp.engine.rates import LearningRates
from asap_exp.engine.recording_choice import set_recording
from asap_exp.engine.step_timer import Pace, StepTimer
from asap_exp.models import build_net, compile_as_configured, tokens_of_images
from asap_exp.report.step_records import FORMAT, folder_of, write_record
from asap_exp.report.step_table import print_steps, report_steps
from asap_exp.timing.roofline import ceilings

MIB = 2**20


def benchmark_steps(config: BenchmarkConfig) -> Path:
    """Time the training steps of `config.task`, and return the path of the record."""
    device = choose_device(config.accelerator)
    trainings, data = trainings_and_data(config, device)
    first = next(iter(trainings.values()))
    precision = first.trainer.precision
    public = steps_config(config)
    name = step_name(config, device, public)
    folder = folder_of(config.paths, name)
    facts = {"stage": "benchmark", "seed": config.seed, "config": public}
    with continued(folder, **facts) as record:
        rows = rows_of(folder, record, public, trainings, data, device)
        dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
        reached = rows.shared or ceilings(device, dtype)
        rate = reached["product_tflops"]
        for attention in rows.missing:
            say(f"Training {config.task.name} with {attention}, {config.step.steps} steps timed")
            row = step_row(trainings[attention], data, device, rate, config)
            rows.add(attention, {"attention": attention, **row, "measured": now()}, reached)
        measured = rows.all()
        parameters = [each.pop("parameters") for each in measured]
        metrics = {
            "format": FORMAT,
            "name": name,
            "device": device_name(device),
            "task": config.task.name,
            "samples": data.sample_name,
            "precision": precision,
            "batch_size": first.recipe.batch_size,
            "parameters": parameters[-1],
            "product_tflops": rate,
            "rows": measured,
            "manifest": sealed(record | outcome(record, "finished")),
        }
        found = write_record(folder / "metrics.json", metrics)
        rows.remove()
    print_steps(found)
    report_steps(config.paths, config.paths.report)
    return config.paths.report / "records" / "steps" / f"{name}.json"


def trainings_and_data(
    config: BenchmarkConfig, device: torch.device
) -> tuple[dict[str, TrainConfig], TaskDataModule]:
    """Return the training of each attention, in the precision of the first, and their data.

    Raises UserError for trainings on several devices.
    """
    trainings = {name: train_config(config, name) for name in config.step.attentions}
    first = next(iter(trainings.values()))
    if (world := first.trainer.world) > 1:
        raise UserError(
            f"step.overrides has trainer.devices={world}, but mode=step times the steps of one "
            "device; leave it out"
        )
    precision = choose_precision(first.trainer.precision, device)
    data = build_data(
        first.data, batch_size=first.recipe.batch_size, seed=config.seed, device=device
    )
    data.setup()
    exact = {
        name: replace(each, trainer=replace(each.trainer, precision=precision))
        for name, each in trainings.items()
    }
    return exact, data


def steps_config(config: BenchmarkConfig) -> dict[str, Any]:
    """Return the configuration for the record, without what only operators read."""
    return drop_keys(public_config(config), ("gpu", "cpu", "inputs", "backend", "cuda_graph"))


def train_config(config: BenchmarkConfig, attention: str) -> TrainConfig:
    """Return the configuration of `python -m asap_exp.train` with this task and attention."""
    return compose(
        "train",
        [
            f"task={config.task.name}",
            f"attention={attention}",
            f"seed={config.seed}",
            "logger=csv",
            "callbacks.progress_bar=false",
            "callbacks.val_every_n_epochs=1000000",
            "recipe.keep=last",
            *config.step.overrides,
        ],
        TrainConfig,
    )


def step_identity(public: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what is measured."""
    return drop_keys(public, ("accelerator", "data"))


def rows_of(
    folder: Path,
    record: dict[str, Any],
    public: dict[str, Any],
    trainings: dict[str, TrainConfig],
    data: TaskDataModule,
    device: torch.device,
) -> Parts:
    """Return the rows that an attempt which was stopped has left in `folder`."""
    settings = {
        attention: {
            "config": step_identity(public),
            "training": public_config(training),
            "data": data.content_hashes(),
            "device": device_name(device),
            "plugins": origins([training.attention["name"]]),
        }
        for attention, training in trainings.items()
    }
    return Parts(folder, record, settings)


def step_name(config: BenchmarkConfig, device: torch.device, public: dict[str, Any]) -> str:
    what = short_hash(step_identity(public))
    words = " ".join([device_name(device), "step", str(config.task.name), what])
    return re.sub("[^a-z0-9]+", "-", words.lower())


def step_row(
    training: TrainConfig,
    data: TaskDataModule,
    device: torch.device,
    rate: float,
    config: BenchmarkConfig,
) -> dict[str, Any]:
    """Train as the stage `train` does; return the fields of a Step, and the `parameters`."""
    torch.compiler.reset()
    L.seed_everything(training.seed, workers=True, verbose=False)
    net = build_net(training)
    module = Classifier(
        net,
        training.recipe,
        num_classes=data.num_classes,
        seed=training.seed,
        objective=training.objective,
    )
    set_micro_batch(training, module, data, device)
    compile_as_configured(net, training, device)
    set_recording(training, module, device, [])
    timer = StepTimer(
        warm_up=config.step.warm_up, steps=config.step.steps, profiled=config.step.profiled
    )
    with TemporaryDirectory() as place, quiet_lightning():
        trainer = build_trainer(training, Run(Path(place)), device, None, [LearningRates(), timer])
        trainer.fit(module, datamodule=data)
    pace, recorded = timer.pace, module.recorded
    if pace.steps < config.step.steps:
        raise UserError(
            f"the training of {config.task.name} ended after {trainer.global_step} steps, before "
            f"step.steps={config.step.steps} were timed; lower it, or raise recipe.epochs in "
            "step.overrides=[recipe.epochs=...]"
        )
    row = {
        **measured(pace),
        **computed(pace, training, data, rate),
        "graphs": 0 if recorded is None else recorded.count,
        "compile_seconds": 0.0 if recorded is None else recorded.seconds,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    del module, net, trainer, timer, recorded
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def measured(pace: Pace) -> dict[str, Any]:
    peak = pace.peak_memory
    return {
        "steps": pace.steps,
        "step_ms": pace.step_ms,
        "median_ms": pace.median_ms,
        "samples_per_second": pace.samples / pace.seconds,
        "gpu_ms": pace.device_ms,
        "gpu_busy": pace.busy,
        "kernels": None if pace.launches is None else pace.launches / pace.profiled_steps,
        "peak_memory_mib": None if peak is None else peak / MIB,
        "warm_up_steps": pace.warm_up_steps,
        "warm_up_seconds": pace.warm_up_seconds,
    }


def computed(
    pace: Pace, training: TrainConfig, data: TaskDataModule, rate: float
) -> dict[str, Any]:
    """Return the tokens and the matrix products of the timed steps, per second and per step."""
    softmax = replace(training, attention={"name": "softmax"})
    with torch.device("meta"):
        net = build_net(softmax)
    flops = tokens = 0.0
    per_sample = tokens_of_images(net)
    example, _ = data.train_dataloader().longest()
    for shape, count in pace.shapes.items():
        flops += count * flops_of(net, example, shape)
        tokens += count * shape[0] * (per_sample or shape[1])
    teraflops = flops / pace.steps / 1e12
    return {
        "tokens_per_second": tokens / pace.seconds,
        "model_tflops": teraflops,
        "utilisation": min(teraflops / (pace.step_ms / 1e3) / rate, 1.0),
    }


def flops_of(net: nn.Module, example: Batch, shape: tuple[int, ...]) -> int:
    """Count the operations of matrix products, forward and backward, on inputs of a shape.

    They are counted on tensors without values.
    """
    inputs: Any = example[0]
    if isinstance(inputs, TokenBatch):
        ids = torch.zeros(shape, dtype=torch.int64, device="meta")
        positions = None
        if inputs.positions is not None:
            share = len(inputs.positions) / inputs.ids.numel()
            positions = torch.zeros(round(share * ids.numel()), dtype=torch.int64, device="meta")
        inputs = TokenBatch(ids, None, positions)
    else:
        inputs = torch.zeros(shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        net(inputs).sum().backward()
    return counter.get_total_flops()
