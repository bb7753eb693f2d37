"""LightningModule of every task: predicts classes of samples or masked tokens."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from asap_exp.core.config import RecipeConfig
from asap_exp.core.objectives import CLASSIFICATION, Objective
from asap_exp.data.loader import Batch, BatchLoader, epoch_seed
from asap_exp.engine.mean_loss import MeanLoss
from asap_exp.engine.micro_batches import MicroBatch, Part, split
from asap_exp.engine.nan_check import LossCheck
from asap_exp.engine.optimisers import build_optimizer, build_schedule
from asap_exp.engine.recording import RecordedTraining


def net_of(module: L.LightningModule) -> nn.Module:
    """Return the network that a module trains."""
    assert isinstance(module.net, nn.Module)
    return module.net


def loader_of(loader: Any) -> BatchLoader:
    """Return the loader that Lightning holds."""
    assert isinstance(loader, BatchLoader)
    return loader


class Classifier(L.LightningModule):
    """Training of `net` (inputs to logits `[targets, classes]`) with the optimiser of `recipe`.

    All randomness in an epoch (augmentation, dropout) follows from the seed and the epoch, so an
    interrupted run that resumes at the start of an epoch ends with the same weights. On several
    devices each draws its own; the loss of each is weighted by its share of the batch's targets,
    so that the mean of the gradients, which Lightning's strategy takes, is that of the batch.

    A batch passes in parts if `micro_batch` is set: `training_step` returns the loss of the first
    part, and `backward` computes the others, each weighted by its share of the targets. A subclass
    that changes `loss_of` alone keeps that.

    With `record_steps`, `training_step` makes the whole update as one CUDA graph, and what
    Lightning calls after it does nothing. Losses are then read some steps later, so that the host
    need not wait; one that is not finite stops the run then, with the weights of the step before.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: RecipeConfig,
        *,
        num_classes: int,
        seed: int,
        objective: Objective = CLASSIFICATION,
    ) -> None:
        """Set up the module; an `objective` judged by its perplexity has that logged as well."""
        super().__init__()
        self.objective = objective
        self.net, self.recipe, self.seed = net, recipe, seed
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.val_loss, self.val_mean_loss = nn.CrossEntropyLoss(), MeanLoss()
        # A look for labels out of range would make the host wait; they are checked when loaded.
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.micro_batch: MicroBatch | None = None
        self.record_steps: Callable[[Classifier], RecordedTraining] | None = None
        self.recorded: RecordedTraining | None = None
        self.epoch_losses: list[Tensor] = []
        self._later: list[Part] = []
        self._losses: list[Tensor] = []
        self._checks: list[LossCheck] = []

    def forward(self, inputs: Any) -> Tensor:
        return self.net(inputs)

    def on_train_start(self) -> None:
        if self.record_steps is not None:
            self.recorded = self.record_steps(self)

    def on_train_epoch_start(self) -> None:
        self.epoch_losses.clear()
        torch.manual_seed(epoch_seed(self.seed, self.current_epoch, self.global_rank))

    def loss_of(self, inputs: Any, targets: Tensor) -> Tensor:
        """Return the training loss, the mean over the targets."""
        return self.loss(self.net(inputs), targets)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        if self.recorded is not None:
            self._losses = [self.recorded.step(batch)]
            return self._losses[0]
        first, *self._later = split(batch, self.micro_batch)
        self._losses = []
        if self.trainer.world_size > 1:
            weight = loader_of(self.trainer.train_dataloader).weight(batch_index)
            first = first._replace(share=first.share * weight)
        return self._part_loss(first)

    def _part_loss(self, part: Part) -> Tensor:
        """Return the loss of a part, weighted by its share, and queue its check."""
        loss = self.loss_of(part.inputs, part.targets)
        self._checks.append(LossCheck(loss, self.net, part.inputs, step=self.global_step))
        loss = loss if part.share == 1 else loss * part.share
        self._losses.append(loss.detach())
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add up the gradients of all parts; Lightning calls this after it has cleared the last."""
        if self.recorded is not None:
            return
        super().backward(loss, *args, **kwargs)
        precision = self.trainer.precision_plugin
        while self._later:
            with precision.forward_context():
                loss = self._part_loss(self._later.pop(0))
            loss = loss / self.trainer.accumulate_grad_batches
            super().backward(precision.pre_backward(loss, self), *args, **kwargs)

    def on_after_backward(self) -> None:
        if self._losses:  # empty if a subclass has its own training_step
            self.log_loss(torch.stack(self._losses).sum() if self._losses[1:] else self._losses[0])

    def log_loss(self, loss: Tensor) -> None:
        """Log `train/loss_step` every few steps and `train/loss_epoch` at the end of an epoch.

        Averaging the loss of every step in Lightning takes a tenth of the host's time.
        """
        self.epoch_losses.append(loss)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = (self.global_step + 1) % every == 0
        if self.recorded is not None:
            self.recorded.log_loss(loss, logs=logs)
        elif logs:
            self.log("train/loss_step", loss, sync_dist=True)

    def on_train_batch_end(self, *_: object) -> None:
        ends = self.trainer.is_last_batch or self.trainer.fit_loop.epoch_loop.done
        if ends and self.recorded is not None:
            self.recorded.read_all()
        if self.epoch_losses and ends:
            mean = torch.stack(self.epoch_losses).mean()
            self.log(
                *("train/loss_epoch", mean),
                on_step=False,
                on_epoch=True,
                batch_size=1,
                sync_dist=True,
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        with self.trainer.precision_plugin.forward_context():  # the check may repeat the forward
            while self._checks:
                self._checks.pop(0).require_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.recorded is not None:
            self.recorded.read_all()

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.recorded is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        if self.recorded is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        elif optimizer_closure is not None:
            optimizer_closure()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        predict = self.net if self.recorded is None else self.recorded.predict
        stands_in = (
            self.trainer.world_size > 1
            and loader_of(self.trainer.val_dataloaders).weight(batch_index) == 0
        )
        for inputs, targets, _ in split(batch, self.micro_batch):
            logits, count = predict(inputs), 0 if stands_in else len(targets)
            self.val_accuracy(logits[:count], targets[:count])
            self.val_mean_loss.update(self.val_loss(logits, targets), count)
            self.log("val/loss", self.val_mean_loss, batch_size=count)
            self.log("val/accuracy", self.val_accuracy, batch_size=count)

    def on_validation_epoch_end(self) -> None:
        if self.objective.is_perplexity:
            mean_loss = self.trainer.callback_metrics["val/loss"]
            self.log(f"val/{self.objective.metric}", mean_loss.exp())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.net, self.recipe)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, self.recipe, steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},  # type: ignore[typeddict-item]
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule, of PyTorch or of timm, after an update."""
        if isinstance(scheduler, Scheduler):
            scheduler.step_update(self.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)
