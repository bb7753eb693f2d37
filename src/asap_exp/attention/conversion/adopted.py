"""Base of the layers that take the place of another library's attention."""

import copy
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from asap_exp.attention.layer import AttentionLayer


class Adopted(AttentionLayer):
    """Layer made of another library's module: its weights, buffers, hooks and mode are kept.

    A subclass also derives from the class of that module, so that code which looks for that class
    finds it, and has a `forward` of its own. Names of weights stay, hence a `state_dict` of the
    model fits before and after the conversion.
    """

    parts: ClassVar[frozenset[str]]
    """Names of the parameters, buffers and submodules that `forward` knows what to do with."""

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        """Return why `module` cannot be converted, or None if it can."""
        names = {*module._parameters, *module._buffers, *module._modules}
        if "forward" in vars(module):
            return "its forward was replaced by another function"
        if unknown := sorted(names - cls.parts):
            return f"this version of asap_exp does not know its {', '.join(unknown)}"
        return None

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Return a layer that shares the parameters and submodules of `module`."""
        layer = with_state_of(module, cls)
        layer.complete()
        return layer

    def complete(self) -> None:
        """Set what this project's code reads, where the library has another name for it."""

    @classmethod
    def settle(cls, model: nn.Module) -> None:
        """Change what else in a converted model stands in the way of these layers."""


Layer = TypeVar("Layer", bound=AttentionLayer)


def with_state_of(module: nn.Module, kind: type[Layer]) -> Layer:
    """Return a layer that shares the parameters and submodules of `module`.

    What is set or registered on one of them later is not on the other.
    """
    layer = kind.__new__(kind)
    for name, value in vars(module).items():
        if name != "_compiled_call_impl":  # bound to `module`
            layer.__dict__[name] = copy.copy(value) if isinstance(value, dict | set) else value
    return layer


def unusual_scale(scale: float, head_dim: int) -> str | None:
    """Return why logits of another scale than head_dim ** -0.5 are an obstacle, or None."""
    usual = head_dim**-0.5
    if abs(scale - usual) <= 1e-6 * usual:
        return None
    return f"its logits have the scale {scale:.4g}, not head_dim ** -0.5 = {usual:.4g}"
