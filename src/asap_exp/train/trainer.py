"""One training run, from a configuration to the teacher's weights in its run directory."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    Timer,
)
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console

from asap_exp.attention import attention_origin, build_attention, canonical_options
from asap_exp.core.config import TrainConfig
from asap_exp.core.console import say, shown
from asap_exp.core.devices import choose_device, choose_precision, use_cpu_threads
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Request, postponed
from asap_exp.core.locks import emptied_unless_begun, held
from asap_exp.core.manifest import Attempt, manifest
from asap_exp.core.run_log import run_log
from asap_exp.core.runs import (
    Run,
    check_same_tokenizer,
    claim,
    identity,
    public_config,
    recipe_hash,
    refuse_other,
    run_directory,
    write_config,
)
from asap_exp.core.tracking import wandb_run
from asap_exp.core.typed import to_json
from asap_exp.data import TaskDataModule, build_data
from asap_exp.engine.checkpoints import (
    LastCheckpoint,
    SafeCheckpointIO,
    StampIdentity,
    check_identity,
)
from asap_exp.engine.csv_log import CsvLog
from asap_exp.engine.diagnostics import PlanDiagnostics
from asap_exp.engine.history import History
from asap_exp.engine.module import Classifier
from asap_exp.engine.progress import progress_callback
from asap_exp.models import build_net, compile_blocks
from asap_exp.models.init_from import initial_facts, initial_run, initialise, with_initial
from asap_exp.train.export import best_weights, export, summary
from asap_exp.train.finished import is_finished
from asap_exp.train.restart import fresh_run

EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r".*lr_scheduler\.step\(\).* before .*optimizer\.step\(\).*",
    r".*The epoch parameter in `scheduler\.step\(\)`.*",
    r".*treespec, LeafSpec.* is deprecated.*",
)
"""Warnings of Lightning and PyTorch that do not apply to these runs."""


@run_log("train")
def train(config: TrainConfig) -> Run:
    """Train or continue the run of `config`; a finished run is left as it is."""
    build_attention(config.attention)  # fails before anything is loaded or written
    initial = initial_run(config)
    config = with_initial(resolved(config), initial)
    device = choose_device(config.trainer.accelerator)
    data = build_data(
        config.data, batch_size=config.recipe.batch_size, seed=config.seed, device=device
    )
    use_cpu_threads(config.trainer.cpu_threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    net = build_net(config)
    if initial is not None:
        initialise(net, initial)
    place = run_directory(config)
    with held(place), emptied_unless_begun(place):
        if config.resume != "never":
            refuse_other(config)
        if config.resume == "auto" and is_finished(Run(place), data):
            return Run(place)
        data.setup()
        data.train_dataloader()  # fails if the samples do not fill a batch
        if initial is not None:
            check_same_tokenizer(data.identity, initial)
        run = claim(config)
        stamp = content_stamp(config, data, initial)
        checkpoint = checkpoint_to_resume(config, run, stamp)
        module = Classifier(
            net,
            config.recipe,
            num_classes=data.num_classes,
            seed=config.seed,
            objective=config.objective,
        )
        if compiles(config, device):
            compile_blocks(module.net, **compile_options(config))
        facts = {
            "config": public_config(config),
            "recipe_hash": recipe_hash(config, initial),
            "data": data.identity,
            "initial": None if initial is None else initial_facts(initial),
            "parameters": sum(p.numel() for p in net.parameters()),
            **attempt(run, checkpoint),
            **attention_origin(config.attention["name"]),
        }
        with ExitStack() as stack:
            if config.resume == "never":
                run = stack.enter_context(fresh_run(config, run, lambda: module.steps_done > 0))
            say(f"Run directory: {shown(run.path)}")
            data.save(run.path)
            fit(config, run, module, data, device, stamp, checkpoint, facts)
    return run


def fit(
    config: TrainConfig,
    run: Run,
    module: Classifier,
    data: TaskDataModule,
    device: torch.device,
    stamp: dict[str, Any],
    checkpoint: Path | None,
    facts: dict[str, Any],
) -> None:
    """Run the training with its tracker and manifest, and write its results."""
    with (
        wandb_run(
            config.logger,
            public_config(config),
            folder=run.path,
            group=run.group,
            job_type="train",
            tags=[str(config.task.name), config.attention["name"]],
            run_id=run.tracking_id,
        ) as tracker,
        manifest(run.path / "manifest.json", stage="train", seed=config.seed, **facts) as record,
        quiet_lightning(),
    ):
        with postponed() as stop:
            trainer = build_trainer(config, run, device, tracker, stamp, stop)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            stop.obey()
        record |= export(config, run, module, trainer)
        if not (run.path / "config.yaml").is_file():  # deleted during training
            write_config(config, run.path)
    say(f"Finished: {shown(run.path)}  {summary(record)}")


def resolved(config: TrainConfig) -> TrainConfig:
    """Return `config` with `auto` resolved on this machine and every option of its attention.

    Both are part of the run's identity.
    """
    device = choose_device(config.trainer.accelerator)
    precision = choose_precision(config.trainer.precision, device)
    return replace(
        config,
        attention=canonical_options(config.attention),
        trainer=replace(config.trainer, precision=precision),
    )


def content_stamp(config: TrainConfig, data: TaskDataModule, initial: Run | None) -> dict[str, Any]:
    """Return what a checkpoint must match to be continued: configuration, data, initial weights."""
    stamp = {**identity(config), "seed": config.seed, "data_content": data.content_hashes()}
    if initial is not None:
        stamp["initial_sha256"] = initial.manifest.teacher_sha256
    return stamp


def attempt(run: Run, checkpoint: Path | None) -> dict[str, Any]:
    """Return what the manifest records about the attempts that this one continues."""
    if checkpoint is None:
        return {"resumed_from": None, "earlier_attempts": []}
    return {"resumed_from": checkpoint.name, "earlier_attempts": earlier_attempts(run)}


def earlier_attempts(run: Run) -> list[dict[str, Any]]:
    """Return the attempts in the manifest that this one continues, oldest first."""
    if not run.started:
        return []
    try:
        last = run.manifest
    except UserError:
        return []  # damaged; already reported when it was read
    facts = {field.name: getattr(last, field.name) for field in fields(Attempt)}
    return [to_json(attempt) for attempt in (*last.earlier_attempts, Attempt(**facts))]


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Return True if the blocks are compiled: by default on a GPU."""
    if config.trainer.compile is None:
        return device.type == "cuda"
    return config.trainer.compile


def compile_options(config: TrainConfig) -> dict[str, Any]:
    """Return options of `torch.compile`: one dynamic graph where lengths vary.

    Compiling a graph per length would take longer than many epochs.
    """
    return {"dynamic": True} if config.lengths_vary else {}


def checkpoint_to_resume(config: TrainConfig, run: Run, stamp: dict[str, Any]) -> Path | None:
    """Return the checkpoint to continue from, or None.

    Raises UserError if it belongs to another configuration.
    """
    if config.resume == "never":
        return None
    path = run.checkpoint if config.resume == "auto" else Path(config.resume)
    if config.resume == "auto" and not path.is_file():
        return None
    check_identity(path, stamp)
    say(f"Continuing from {shown(path)}")
    return path


def build_trainer(
    config: TrainConfig,
    run: Run,
    device: torch.device,
    tracker: Any,
    stamp: dict[str, Any],
    stop: Request,
) -> L.Trainer:
    """Build the Lightning trainer of a run."""
    trainer = config.trainer
    loggers: list[Logger] = [CsvLog(run.path, name="logs")]
    if tracker is not None:
        loggers.append(WandbLogger(experiment=tracker))
    validates = config.data.train_on == "train"
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=config.recipe.epochs,
        gradient_clip_val=config.recipe.clip_norm,
        check_val_every_n_epoch=config.callbacks.val_every_n_epochs,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=trainer.log_every_n_steps,
        logger=loggers,
        callbacks=[*build_callbacks(config, run, validates, device, stop), StampIdentity(stamp)],
        plugins=[SafeCheckpointIO()],
        enable_progress_bar=config.callbacks.progress_bar and Console().is_terminal,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def build_callbacks(
    config: TrainConfig, run: Run, validates: bool, device: torch.device, stop: Request
) -> list[L.Callback]:
    """Build the callbacks of a run, in the order in which they must be called."""
    callbacks: list[L.Callback] = [Timer(), LearningRateMonitor("step"), History()]
    if config.callbacks.progress_bar:
        callbacks.append(progress_callback())
    if validates and config.callbacks.diagnostic_samples:
        callbacks.append(PlanDiagnostics(config.callbacks.diagnostic_samples))
    if validates:
        callbacks.append(best_weights(config))
    if config.recipe.ema_decay is not None:
        # After the callbacks above, because it restores the raw weights when validation ends.
        callbacks.append(EMAWeightAveraging(device=device, decay=config.recipe.ema_decay))
    last = LastCheckpoint(run.checkpoint, seconds=config.callbacks.checkpoint_seconds, stop=stop)
    return [*callbacks, last]


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notices and its advice for data loaders with workers."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
