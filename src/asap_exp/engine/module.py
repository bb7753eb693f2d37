"""LightningModule of every task: predicts classes of samples or masked tokens."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)
from torchmetrics.classification import MulticlassAccuracy

from asap_exp.core.config import RecipeConfig, TextRecipeConfig
from asap_exp.core.objectives import CLASSIFICATION, Objective
from asap_exp.data.loader import Batch, epoch_seed
from asap_exp.engine.nan_check import LossCheck


class Classifier(L.LightningModule):
    """Training of `net` (inputs to logits `[targets, classes]`) with AdamW, warm-up and a cosine.

    All randomness in an epoch (augmentation, dropout) follows from the seed and the epoch, so an
    interrupted run that resumes at the start of an epoch ends with the same weights.
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
        self.val_loss = nn.CrossEntropyLoss()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.epoch_losses: list[Tensor] = []
        self.steps_done = 0
        """Steps of this process, without those of earlier attempts."""

    def forward(self, inputs: Any) -> Tensor:
        return self.net(inputs)

    def on_train_epoch_start(self) -> None:
        self.epoch_losses.clear()
        torch.manual_seed(epoch_seed(self.seed, self.current_epoch))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        inputs, targets = batch
        loss = self.loss(self.net(inputs), targets)
        self.loss_check = LossCheck(loss, self.net, inputs, step=self.global_step)
        self.log_loss(loss.detach())
        return loss

    def log_loss(self, loss: Tensor) -> None:
        """Log `train/loss_step` every few steps and `train/loss_epoch` at the end of an epoch.

        Averaging the loss of every step in Lightning takes a tenth of the host's time.
        """
        self.epoch_losses.append(loss)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            self.log("train/loss_step", loss)
        if self.trainer.is_last_batch:
            mean = torch.stack(self.epoch_losses).mean()
            self.log("train/loss_epoch", mean, on_step=False, on_epoch=True, batch_size=1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        with self.trainer.precision_plugin.forward_context():  # the check may repeat the forward
            self.loss_check.require_finite()

    def on_train_batch_end(self, *_: object) -> None:
        self.steps_done += 1

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        inputs, targets = batch
        logits = self.net(inputs)
        self.val_accuracy(logits, targets)
        self.log("val/loss", self.val_loss(logits, targets), batch_size=len(targets))
        self.log("val/accuracy", self.val_accuracy, batch_size=len(targets))

    def on_validation_epoch_end(self) -> None:
        if self.objective.is_perplexity:
            mean_loss = self.trainer.callback_metrics["val/loss"]
            self.log(f"val/{self.objective.metric}", mean_loss.exp())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        recipe = self.recipe
        groups = param_groups_weight_decay(self.net, weight_decay=recipe.weight_decay)
        optimizer = adamw(groups, recipe.lr, fused=self.device.type == "cuda")
        steps = int(self.trainer.estimated_stepping_batches)
        drop = recipe.lr_drop_epoch if isinstance(recipe, TextRecipeConfig) else None
        schedule: LRScheduler
        if drop is None:
            schedule = warmup_cosine(
                optimizer,
                steps=steps,
                warmup_steps=round(steps * recipe.warmup_epochs / recipe.epochs),
                final_lr=recipe.lr * recipe.final_lr_ratio,
            )
        else:
            milestone = round(steps * drop / recipe.epochs)
            schedule = MultiStepLR(optimizer, [milestone], gamma=recipe.final_lr_ratio)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def adamw(groups: list[dict], lr: float, *, fused: bool) -> torch.optim.AdamW:
    """Build AdamW; `fused` updates all weights in a few kernels, at a third of the host time."""
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=fused or None)
    # A fused optimiser announces that it unscales float16 gradients itself, and Lightning then
    # refuses to clip them. Without that flag they are unscaled first, as for other optimisers.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def warmup_cosine(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup_steps: int, final_lr: float
) -> LRScheduler:
    """Build a linear warm-up over `warmup_steps`, then a cosine decay to `final_lr` at `steps`."""
    cosine = CosineAnnealingLR(optimizer, T_max=max(steps - warmup_steps, 1), eta_min=final_lr)
    if warmup_steps == 0:
        return cosine
    rise = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup_steps])
