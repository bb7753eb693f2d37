"""Recording of the tokens between the blocks of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from asap_exp.attention import attention_layers
from asap_exp.core.errors import UserError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold an attention layer each, in order.

    Raises UserError if a layer is in no module of its own.
    """
    paths = list(attention_layers(model))
    parents = [path.rpartition(".")[0] for path in paths]
    if "" in parents or len(set(parents)) < len(parents):
        raise UserError(
            f"behaviour=true needs a module around each attention layer whose output are the "
            f"tokens; the layers are at {', '.join(paths)}. Set behaviour=false"
        )
    return [model.get_submodule(parent) for parent in parents]


@contextmanager
def recorded_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record `[B, N, dim]` before the first block and after each; the caller clears the list."""
    states: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        states.append(args[0].detach())

    def leave(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        states.append(output.detach())

    first, *_ = blocks = blocks_of(model)
    handles = [first.register_forward_pre_hook(enter)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
