"""What a run is trained with: micro-batches, Lightning's Trainer and the callbacks."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import (
    EarlyStopping,
    RichModelSummary,
    Timer,
)
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor, nn

from asap_exp.core.config import PASSED_ON, TrainConfig, TrainerConfig
from asap_exp.core.console import debug, say
from asap_exp.core.devices import autocast
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Request
from asap_exp.core.memory import gib
from asap_exp.core.runs import Run
from asap_exp.data import TaskDataModule
from asap_exp.data.loader import Batch
from asap_exp.data.tokens import TokenBatch
from asap_exp.engine.averaging import Averaging
from asap_exp.engine.checkpoints import BestWeights, LastCheckpoint, SafeCheckpointIO, StampIdentity
from asap_exp.engine.continued import ContinueCurves, tracker_loggers
from asap_exp.engine.csv_log import CsvLog
from asap_exp.engine.diagnostics import PlanDiagnostics
from asap_exp.engine.footprint import (
    footprint,
    require_room,
    samples_at_once,
    unchanged_generators,
)
from asap_exp.engine.history import History
from asap_exp.engine.micro_batches import MicroBatch
from asap_exp.engine.module import Classifier, net_of
from asap_exp.engine.plan_images import PlanImages
from asap_exp.engine.progress import progress_callbacks
from asap_exp.engine.rates import LearningRates
from asap_exp.engine.sharding import Sharded
from asap_exp.engine.trace import Trace
from asap_exp.engine.waits import Waits

EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r".*lr_scheduler\.step\(\).* before .*optimizer\.step\(\).*",
    r".*The epoch parameter in `scheduler\.step\(\)`.*",
    r".*treespec, LeafSpec.* is deprecated.*",
    r"Grad strides do not match bucket view strides.*",  # of weights with a dimension of one
    r".*It is recommended to use .*sync_dist=True.*",  # every rank has the diagnostics of all
    r".*find_unused_parameters=True was specified.*did not find any.*",  # where none is known
)
"""Warnings of Lightning and PyTorch that do not apply to these runs."""

UNUSED = (
    "Expected to have finished reduction in the prior iteration",
    "not used in producing the loss",
)
"""What DDP, and Lightning in its place, say after a step whose loss left out some weights."""

PROFILERS: dict[str, type[Profiler]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
"""Profilers of Lightning. Its PyTorchProfiler writes a trace of a whole training, of gigabytes."""


def splits_batches(module: L.LightningModule) -> bool:
    """Return True if a module can take a batch in parts: it has the Classifier's own step."""
    return isinstance(module, Classifier) and (
        type(module).training_step is Classifier.training_step
        and type(module).backward is Classifier.backward
    )


def require_weighted(config: TrainConfig, module: L.LightningModule) -> None:
    """Raise UserError if devices with unequal parts of a batch would count the same.

    The Classifier's own step weights the loss of each by its targets.
    """
    if config.trainer.world > 1 and config.lengths_vary and not splits_batches(module):
        raise UserError(
            f"{type(module).__name__} has a training_step of its own, and several devices have "
            "unequal numbers of texts, which the Classifier's step weights; change loss_of alone, "
            "or set trainer.devices=1"
        )


def set_micro_batch(
    config: TrainConfig, module: L.LightningModule, data: TaskDataModule, device: torch.device
) -> tuple[str, ...]:
    """Measure the memory that training takes, and let batches pass in parts if they must.

    Returns the names of the weights that the measured pass left without a gradient. Raises
    UserError if the memory does not suffice.
    """
    if config.trainer.strategy == "fsdp":
        return ()  # a whole model, which is measured, need not fit
    with unchanged_generators(device):
        sample, batch = data.train_dataloader().longest()
    several = config.trainer.world > 1
    if several:
        batch = -(-batch // config.trainer.world)
    splits = splits_batches(module) and not several
    if not splits and config.trainer.micro_batch is not None:
        raise UserError(
            f"trainer.micro_batch={config.trainer.micro_batch} needs the Classifier's own "
            f"training_step, and {type(module).__name__} has another; set it to null"
        )

    require_room(net_of(module), config.recipe, device, config.trainer.devices)
    found = footprint(
        module if splits_batches(module) else net_of(module),
        own_loss if splits_batches(module) else plain_loss,
        sample,
        config.recipe,
        autocast(config.trainer.precision, device),
    )
    given = config.trainer.micro_batch
    at_once = samples_at_once(
        found,
        given,
        batch,
        device,
        data.sample_name,
        splits=splits,
        world=config.trainer.world,
        beside=config.trainer.devices,
    )
    if at_once < batch:
        assert isinstance(module, Classifier)
        inputs = sample[0]
        length = inputs.ids.shape[1] if isinstance(inputs, TokenBatch) else None
        module.micro_batch = MicroBatch(at_once, None if length is None else at_once * length)
        say(
            f"Batches pass in parts of {at_once} {data.sample_name}: whole ones would take "
            f"{gib(batch * found.sample)} (trainer.micro_batch)"
        )
    return found.unused


def own_loss(module: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(module, Classifier)
    return module.loss_of(*batch)


def plain_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Return a loss of any network: only the memory that its gradient takes counts."""
    return net(batch[0]).float().square().mean()


def build_trainer(
    config: TrainConfig,
    run: Run,
    device: torch.device,
    tracker: Any,
    callbacks: list[L.Callback],
    environment: ClusterEnvironment | None = None,
    *,
    some_unused: bool = False,
) -> L.Trainer:
    """Build the Lightning trainer of a run, for several devices with their `environment`.

    Loggers and the profiler write on rank 0 alone. If the loss does not depend on some weights
    (`some_unused`), DDP looks for them in every step.
    """
    trainer = config.trainer
    first = environment is None or environment.global_rank() == 0
    plugins: list[Any] = [SafeCheckpointIO()]
    if environment is not None:
        plugins.append(environment)
    trackers = tracker_loggers(config.logger, run.path, tracker) if first else []
    loggers = [CsvLog(run.path, name="logs"), *trackers]
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy="auto" if environment is None else build_strategy(trainer, some_unused),
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=config.recipe.epochs,
        gradient_clip_val=config.recipe.clip_norm,
        check_val_every_n_epoch=config.callbacks.val_every_n_epochs,
        limit_val_batches=trainer.limit_val_batches if validates(config) else 0,
        logger=loggers,
        callbacks=callbacks,
        profiler=build_profiler(trainer.profiler if first else None, run),
        plugins=plugins,
        use_distributed_sampler=False,  # the loaders split every batch
        enable_progress_bar=config.callbacks.progress_bar and Console().is_terminal,
        default_root_dir=run.path,
        **passed_on(config),
    )


def build_strategy(trainer: TrainerConfig, some_unused: bool) -> Strategy:
    """Return Lightning's strategy for several devices."""
    if trainer.strategy == "fsdp":
        return Sharded(trainer.world)
    return DDPStrategy(find_unused_parameters=some_unused)


def leaves_some_unused(
    config: TrainConfig, module: L.LightningModule, unused: Sequence[str]
) -> bool:
    """Return True if DDP must look for weights without a gradient, some of which are known.

    What a step of the module's own leaves out is not known before it is taken.
    """
    given = config.trainer.find_unused_parameters
    if given is None and unused and config.trainer.world > 1:
        debug(f"the loss does not depend on {', '.join(unused)}")
    return (bool(unused) or not splits_batches(module)) if given is None else given


def passed_on(config: TrainConfig) -> dict[str, Any]:
    """Return the arguments of the Trainer that are given below `trainer`."""
    given = {name: getattr(config.trainer, name) for name in PASSED_ON}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def refusals_in_words(config: TrainConfig) -> Iterator[None]:
    """Raise UserError where Lightning or DDP refuses what a key below `trainer` can set."""
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        if not any(words in str(error) for words in UNUSED):
            raise
        raise UserError(
            "the loss of some steps does not depend on all weights, so that the devices cannot "
            "exchange their gradients; set trainer.find_unused_parameters=true, or "
            "requires_grad=False on weights that the loss never depends on",
            key="trainer.find_unused_parameters",
            value=config.trainer.find_unused_parameters,
            allowed=True,
        ) from error
    except (MisconfigurationException, ValueError) as error:
        for name, value in passed_on(config).items():
            if f"`{name}`" in str(error):
                words = " ".join(str(error).split())
                raise UserError(
                    f"trainer.{name}={value} is refused by Lightning: {words}"
                ) from error
        raise


def build_profiler(name: str | None, run: Run) -> Profiler | None:
    """Return Lightning's profiler of this name, which writes below the run directory, if any."""
    kind = None if name is None else PROFILERS.get(name)
    return None if kind is None else kind(dirpath=run.path / "profile", filename=name)


def validates(config: TrainConfig) -> bool:
    return config.data.train_on == "train"


def build_callbacks(
    config: TrainConfig,
    run: Run,
    device: torch.device,
    stop: Request,
    stamp: dict[str, Any],
    own: list[L.Callback],
) -> list[L.Callback]:
    """Build the callbacks of a run, in the order in which they must be called."""
    chosen = config.callbacks
    callbacks: list[L.Callback] = [
        ContinueCurves(run.path),
        Timer(duration=config.trainer.max_time),  # a Trainer with a Timer ignores its max_time
        LearningRates(),
        Waits(),
        History(),
    ]
    if chosen.progress_bar:
        callbacks += progress_callbacks()
    if config.trainer.enable_model_summary:
        callbacks.append(RichModelSummary())
    if validates(config) and chosen.diagnostic_samples:
        callbacks.append(PlanDiagnostics(chosen.diagnostic_samples))
    tracked = config.logger.wandb or config.logger.tensorboard
    if validates(config) and tracked and chosen.plan_images:
        epochs, every = config.recipe.epochs, chosen.val_every_n_epochs
        callbacks.append(PlanImages(chosen.plan_images, epochs, every))
    if validates(config):
        callbacks.append(best_weights(config))
    if chosen.early_stopping.patience is not None:
        callbacks.append(early_stopping(config))
    callbacks += own
    if config.trainer.profiler == "pytorch":
        callbacks.append(Trace(run.path / "profile"))
    if config.recipe.ema_decay is not None:
        # After the callbacks above, because it restores the raw weights when validation ends.
        callbacks.append(Averaging(device=device, decay=config.recipe.ema_decay))
    callbacks.append(LastCheckpoint(run.checkpoint, seconds=chosen.checkpoint_seconds, stop=stop))
    return [*callbacks, StampIdentity(stamp)]


def best_weights(config: TrainConfig) -> BestWeights:
    """Return the callback that keeps the weights of the best epoch."""
    objective = config.objective
    return BestWeights(objective.validation, smallest=objective.lower_is_better)


def early_stopping(config: TrainConfig) -> EarlyStopping:
    """Return the callback that stops when the quantity that chooses the best epoch stands still."""
    chosen = config.callbacks.early_stopping
    assert chosen.patience is not None
    return EarlyStopping(
        config.objective.validation,
        mode="min" if config.objective.lower_is_better else "max",
        patience=chosen.patience,
        min_delta=chosen.min_delta,
    )


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
