"""A loss that is not finite stops the run and names the layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.errors import UserError

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


def on_inputs(net: nn.Module, inputs: Any) -> Any:
    return net(inputs)


@torch.no_grad()
def first_non_finite(
    net: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] = on_inputs
) -> str:
    """Which parameter or layer output, in the order of the forward pass, first is not finite."""
    if isinstance(inputs, Tensor) and not torch.isfinite(inputs).all():
        return "the input batch is not finite"
    for name, parameter in net.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weights of layer {name} are not finite"
    found: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"the output of layer {name} ({type(module).__name__}) is not finite")

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in net.named_modules()
        if name and not list(module.children())
    ]
    try:
        with torch.compiler.set_stance("force_eager"):  # hooks are no part of a compiled graph
            forward(net, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "every layer's output is finite; the loss itself overflows"
