"""A loss that is not finite stops the run and names the layer."""

from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.core.errors import UserError
from asap_exp.core.nan_check import first_non_finite

REMEDIES = (
    "Try a smaller recipe.lr, recipe.clip_norm=1.0, model.qk_norm=true or trainer.precision=32-true"
)


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite; the message names the first layer at fault."""


class LossCheck:
    """Asks whether `loss` is finite when made, and waits for the answer only in `require_finite`.

    Between the two the backward pass is queued, so that the GPU has work while the host waits: for
    the forward pass alone, which is what the answer needs.
    """

    def __init__(self, loss: Tensor, net: nn.Module, inputs: Any, *, step: int) -> None:
        self.loss, self.net, self.inputs, self.step = loss.detach(), net, inputs, step
        self.finite = torch.isfinite(self.loss).to("cpu", non_blocking=loss.is_cuda)
        self.answered = torch.cuda.Event() if loss.is_cuda else None
        if self.answered is not None:
            self.answered.record()

    def require_finite(self) -> None:
        """Raises NonFiniteLoss; call it before the optimiser can spoil the weights."""
        if self.answered is not None:
            self.answered.synchronize()
        if self.finite:
            return
        raise NonFiniteLoss(
            f"the loss is {self.loss.item()} at step {self.step}: "
            f"{first_non_finite(self.net, self.inputs)}. What was saved before is "
            f"unharmed. {REMEDIES}"
        )
