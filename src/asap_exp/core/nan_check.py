"""Search for the first parameter or layer output of a network that is not finite."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.core.errors import UserError

LOSS_ALONE = "every layer's output is finite; the loss itself overflows"
"""What is said of a network that is not at fault."""


class NonFiniteLoss(UserError):
    """Raised when the loss is NaN or infinite; the message names the first faulty layer."""


def on_inputs(net: nn.Module, inputs: Any) -> Any:
    """Run `net` on `inputs`."""
    return net(inputs)


@torch.no_grad()
def first_non_finite(
    net: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] = on_inputs
) -> str:
    """Name the first parameter or layer output, in forward order, that is not finite."""
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
        with torch.compiler.set_stance("force_eager"):  # compiled graphs skip hooks
            forward(net, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else LOSS_ALONE
