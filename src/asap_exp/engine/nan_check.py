"""Check that the loss is finite; otherwise the run stops and the layer is named."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.core.errors import UserError
from asap_exp.core.nan_check import LOSS_ALONE, first_non_finite

REMEDIES = (
    "Try a smaller recipe.lr, recipe.clip_norm=1.0, model.qk_norm=true or trainer.precision=32-true"
)


class NonFiniteLoss(UserError):
    """Raised when the loss is NaN or infinite; the message names the first faulty layer."""


class LossCheck:
    """Check of `loss` that is queued at once but waited for only in `require_finite`.

    The backward pass is queued in between, so that the GPU stays busy while the host waits, and the
    wait ends with the forward pass.
    """

    def __init__(self, loss: Tensor, net: nn.Module, inputs: Any, *, step: int) -> None:
        self.loss, self.net, self.inputs, self.step = loss.detach(), net, inputs, step
        self.finite = torch.isfinite(self.loss).to("cpu", non_blocking=loss.is_cuda)
        self.answered = torch.cuda.Event() if loss.is_cuda else None
        if self.answered is not None:
            self.answered.record()

    def require_finite(self) -> None:
        """Raise NonFiniteLoss for a non-finite loss; call before the optimiser changes weights."""
        if self.answered is not None:
            self.answered.synchronize()
        if self.finite:
            return
        raise non_finite_loss(self.loss.item(), self.net, [self.inputs], step=self.step)


def non_finite_loss(
    loss: float, net: nn.Module, parts: Sequence[Any], *, step: int
) -> NonFiniteLoss:
    """Return the error of a loss at `step` that is not finite, with the layer it comes from.

    `parts` are the inputs whose losses were added up; the layer is that of the first at fault.
    """
    found = [first_non_finite(net, inputs) for inputs in parts]
    layer = next((text for text in found if text != LOSS_ALONE), LOSS_ALONE)
    return NonFiniteLoss(
        f"the loss is {loss} at step {step}: {layer}. Earlier checkpoints are unharmed. {REMEDIES}"
    )
