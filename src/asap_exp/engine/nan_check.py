"""Check that the loss is finite; otherwise the run stops and the layer is named."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.core.agreement import all_true, of_all
from asap_exp.core.nan_check import LOSS_ALONE, NonFiniteLoss, first_non_finite

REMEDIES = (
    "Try a smaller recipe.lr, recipe.clip_norm=1.0, model.qk_norm=true or trainer.precision=32-true"
)


class LossCheck:
    """Check of `loss` that is queued at once but waited for only in `require_finite`.

    The backward pass is queued in between, so that the GPU stays busy while the host waits, and the
    wait ends with the forward pass.
    """

    def __init__(self, loss: Tensor, net: nn.Module, inputs: Any, *, step: int) -> None:
        self.loss, self.net, self.inputs, self.step = loss.detach(), net, inputs, step
        finite = all_true(torch.isfinite(self.loss))
        self.finite = finite.to("cpu", non_blocking=loss.is_cuda)
        self.answered = torch.cuda.Event() if loss.is_cuda else None
        if self.answered is not None:
            self.answered.record()

    def require_finite(self) -> None:
        """Raise NonFiniteLoss for a non-finite loss; call before the optimiser changes weights.

        All ranks raise the error of the first of them whose loss is not finite.
        """
        if self.answered is not None:
            self.answered.synchronize()
        if self.finite:
            return
        error = non_finite_loss(self.loss.item(), self.net, [self.inputs], step=self.step)
        found = of_all(None if torch.isfinite(self.loss) else str(error))
        raise NonFiniteLoss(next(text for text in found if text is not None))


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
