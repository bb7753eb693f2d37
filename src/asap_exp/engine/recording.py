"""Training of a module whose steps and validation are recorded as CUDA graphs."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor

from asap_exp.core.cuda_graph import Recorder
from asap_exp.core.forward_graphs import ForwardGraphs
from asap_exp.data.loader import Batch
from asap_exp.engine.micro_batches import split
from asap_exp.engine.nan_check import NonFiniteLoss, non_finite_loss
from asap_exp.engine.readings import Readings
from asap_exp.engine.step_graphs import StepGraphs

if TYPE_CHECKING:
    from asap_exp.engine.module import Classifier

READ_EVERY = 10
"""Steps between two looks at whether a loss was not finite."""


class RecordedTraining:
    """Steps and validation of a Classifier as CUDA graphs, and losses that the host reads later."""

    def __init__(self, module: "Classifier", recorder: Recorder) -> None:
        """Set up the training of `module`, whose optimiser exists; see StepGraphs."""
        self.module, trainer = module, module.trainer
        optimizer = module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)

        def clip() -> None:
            trainer.precision_plugin.clip_gradients(
                optimizer,
                trainer.gradient_clip_val or 0.0,
                GradClipAlgorithmType(trainer.gradient_clip_algorithm or "norm"),
            )

        self.steps = StepGraphs(
            optimizer,
            self._gradients,
            clip,
            self._failure,
            recorder,
            first_step=module.global_step,
        )
        self.predict = ForwardGraphs(module.net, recorder)
        self.last_loss: float | None = None
        """Loss of the last step that has been read, for a progress bar."""
        self._readings = Readings()

    @property
    def seconds(self) -> float:
        """Time in which steps of the training were compiled and recorded."""
        return self.steps.seconds

    @property
    def count(self) -> int:
        """Number of graphs that steps of the training were recorded in."""
        return self.steps.count

    def step(self, batch: Batch) -> Tensor:
        """Make one update and return its loss, on the device."""
        return self.steps.step(batch)

    def log_loss(self, loss: Tensor, *, logs: bool) -> None:
        """Have the loss of this step read and, with `logs`, logged some steps later."""
        module = self.module
        step, epoch = module.global_step, module.current_epoch
        if logs:
            module.log("train/loss_step", loss, logger=False)
        if logs or (step + 1) % READ_EVERY == 0:
            self._readings.send(
                torch.stack([loss, self.steps.failed.to(loss)]),
                lambda read: self._read(*read, step=step, epoch=epoch, logs=logs),
            )

    def read_all(self) -> None:
        """Wait for every loss on its way; raise NonFiniteLoss if one was not finite."""
        self.steps.raise_if_failed()
        self._readings.receive()

    def _read(self, loss: float, failed: float, *, step: int, epoch: int, logs: bool) -> None:
        if failed:
            self.steps.fail()
        self.last_loss = loss
        for logger in self.module.loggers if logs else ():
            logger.log_metrics({"train/loss_step": loss, "epoch": epoch}, step=step)
            logger.save()

    def _gradients(self, batch: Batch) -> Tensor:
        """Add the gradients of all parts of a batch to the weights; return its loss."""
        module, losses = self.module, []
        for part in split(batch, module.micro_batch):
            with module.trainer.precision_plugin.forward_context():
                loss = module.loss_of(part.inputs, part.targets)
            losses.append(loss if part.share == 1 else loss * part.share)
            losses[-1].backward()
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _failure(self, batch: Batch, step: int) -> NonFiniteLoss:
        module, parts = self.module, split(batch, self.module.micro_batch)
        with module.trainer.precision_plugin.forward_context():
            return non_finite_loss(
                float(self.steps.loss), module.net, [part.inputs for part in parts], step=step
            )
