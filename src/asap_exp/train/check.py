"""`check=true`: all that a training needs is looked at, one step is taken, nothing is written."""

import math
import time
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.utils._pytree import tree_leaves

from asap_exp.core.checking import check_place, conclude, nothing_to_do
from asap_exp.core.config import TrainConfig
from asap_exp.core.console import counted, say, shown
from asap_exp.core.devices import device_name, memory_left
from asap_exp.core.interruption import Request
from asap_exp.core.memory import gib
from asap_exp.core.runs import Run, refuse_other, run_directory
from asap_exp.core.score import Score
from asap_exp.data.loader import Batch
from asap_exp.data.tokens import TokenBatch
from asap_exp.engine.building import (
    build_callbacks,
    build_trainer,
    quiet_lightning,
    refusals_in_words,
    validates,
)
from asap_exp.engine.checkpoints import load_checkpoint
from asap_exp.engine.module import Classifier, net_of
from asap_exp.engine.recording_choice import set_recording
from asap_exp.train.finished import is_finished
from asap_exp.train.trainer import (
    Training,
    checkpoint_to_resume,
    content_stamp,
    load,
    num_parameters,
    prepared,
)

STEPS, STEP_SECONDS = 20, 1.0
"""Most batches that are tried, and the time after which no other one is."""
BATCH_SECONDS, MOST_AT_ONCE = 1.5, 16
"""About the longest time of such a batch on a CPU, and the most samples in it."""


def check(config: TrainConfig) -> Score:
    """Check the training of `config` and print what would run; return the estimated time."""
    training = prepared(config)
    config, data = training.config, training.data
    run = Run(run_directory(config))
    found = check_place(run.path, 0, config.logger)
    if config.resume != "never":
        refuse_other(config)
    if config.resume == "auto" and is_finished(run, data, mend=False):
        return nothing_to_do()
    started = time.perf_counter()
    data.setup()
    setup_seconds = time.perf_counter() - started
    started = time.perf_counter()
    load(training)
    sample_seconds = time.perf_counter() - started
    stamp = content_stamp(config, data, training.initial)
    checkpoint = checkpoint_to_resume(config, run, stamp)
    begun = 0 if checkpoint is None else load_checkpoint(checkpoint)["epoch"] + 1
    set_recording(config, training.module, training.team.device, training.callbacks)
    clock, at_once = Clock(), config.recipe.batch_size
    if training.team.device.type == "cpu":
        at_once = min(at_once, max(int(BATCH_SECONDS / sample_seconds), 1), MOST_AT_ONCE)
    trainer = few_steps(training, run, stamp, at_once, clock)
    found |= check_place(run.path, saved_bytes(trainer, training))
    train, val = data.train_dataloader(), data.val_dataloader()
    per_epoch = batches(training, len(train))
    epochs = max(config.recipe.epochs - begun, 0)
    if config.trainer.max_steps is not None:
        steps = per_epoch / (config.trainer.accumulate_grad_batches or 1)
        epochs = min(epochs, math.ceil(config.trainer.max_steps / steps))
    seconds = epochs * epoch_seconds(training, clock)
    if training.team.device.type == "cuda":  # on a CPU the processes share its cores
        seconds /= config.trainer.world
    seconds += setup_seconds  # which each device spends
    start = "from the start" if checkpoint is None else f"from {shown(checkpoint)}"
    say(f"Run directory: {shown(run.path)}")
    return conclude(
        {
            "data": f"{train.num_samples:,} training and {val.num_samples:,} validation "
            f"{data.sample_name} ({data.identity['source']})",
            "model": f"{config.model.name} with {config.attention['name']} attention, "
            f"{num_parameters(training.module):,} parameters",
            "device": f"{device_name(training.team.device)}, {config.trainer.precision}",
            "memory": f"{gib(memory_left(training.team.device))} left, which suffices",
            **found,
        },
        seconds,
        f"{counted(epochs, 'epoch')} of {counted(per_epoch, 'batch', 'es')}, {start}",
    )


class Clock(L.Callback):
    """Callback that times batches, but not the first ones, and ends an epoch after a while."""

    def __init__(self) -> None:
        self.marks: dict[str, list[tuple[float, int]]] = {"train": [], "val": []}

    def mark(self, kind: str, batch: Batch) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        inputs = batch[0]
        count = len(inputs.ids if isinstance(inputs, TokenBatch) else inputs)
        self.marks[kind].append((time.perf_counter(), count))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        self.mark("train", batch)
        if index and self.marks["train"][-1][0] - self.marks["train"][0][0] > STEP_SECONDS:
            trainer.should_stop = True

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self.mark("val", batch)

    def sample_seconds(self, kind: str) -> float:
        """Return the seconds per sample, without the first batch; 0 if there was no second."""
        (first, _), *others = self.marks[kind] or [(0.0, 0)]
        return (others[-1][0] - first) / sum(count for _, count in others) if others else 0.0


def epoch_seconds(training: Training, clock: Clock) -> float:
    """Return about how long an epoch takes, by the samples that it sees."""
    config, data = training.config, training.data
    loader = data.train_dataloader()
    share = batches(training, len(loader)) / len(loader)
    seconds = clock.sample_seconds("train") * share * loader.num_samples
    if validates(config):
        samples = data.val_dataloader().num_samples / config.callbacks.val_every_n_epochs
        seconds += clock.sample_seconds("val") * samples
    return seconds


def few_steps(
    training: Training, run: Run, stamp: dict[str, Any], at_once: int, clock: Clock
) -> L.Trainer:
    """Train on batches of `at_once` samples as `train` does, for a second or two, and validate.

    They are neither compiled nor recorded, pass on one device, and no file is written.
    """
    config, module = training.config, training.module
    if isinstance(module, Classifier):
        module.record_steps = None
    shortened = replace(
        config,
        trainer=replace(
            config.trainer, fast_dev_run=STEPS, devices=1, num_nodes=1, profiler=None, max_time=None
        ),
        callbacks=replace(
            config.callbacks,
            progress_bar=False,
            diagnostic_samples=min(config.callbacks.diagnostic_samples, at_once),
        ),
    )
    own = [*training.callbacks, clock]
    callbacks = build_callbacks(shortened, run, training.team.device, Request(), stamp, own)
    kept = [each for each in callbacks if not isinstance(each, Checkpoint)]
    kept.append(Checkpoint())  # saves nothing; without any, Lightning would add one that does
    train, _ = training.data.few_dataloaders(STEPS * at_once, at_once)
    _, val = training.data.few_dataloaders(2 * at_once, at_once)
    with quiet_lightning(), refusals_in_words(config):
        trainer = build_trainer(shortened, run, training.team.device, None, kept)
        trainer.fit(module, train_dataloaders=train, val_dataloaders=val)
    return trainer


def batches(training: Training, in_all: int) -> int:
    """Return the batches of an epoch."""
    trainer = training.config.trainer
    for limit in (trainer.fast_dev_run, trainer.overfit_batches, trainer.limit_train_batches):
        if limit:
            return min(in_all, int(limit * in_all) if isinstance(limit, float) else int(limit))
    return in_all


def saved_bytes(trainer: L.Trainer, training: Training) -> int:
    """Return about what a run writes: its checkpoint, the next one beside it, and the weights."""
    weights = sum(p.nbytes for p in net_of(training.module).parameters())
    state = [list(each.state.values()) for each in trainer.optimizers]
    optimizer = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
    copies = 3 if training.config.recipe.ema_decay is not None else 2
    return 2 * (copies * weights + optimizer) + weights
