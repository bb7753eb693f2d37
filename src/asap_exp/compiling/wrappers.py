"""Wrappers, such as DistributedDataParallel, in which the layers of a model have other paths."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.jit import ScriptModule

from asap_exp.core.errors import UserError

WRAPPING = ("torch.nn.parallel.", "torch.optim.", "lightning.fabric.", "lightning_fabric.")
"""Where the classes are that hold a model as their `module` and run it as it is."""

INNER = ("_orig_mod", "module")
"""Names of the model in a wrapper: in that of torch.compile, and in those of `WRAPPING`."""


def check_model(model: object, function: str) -> None:
    """Raise UserError unless `model` is a module that `function` can take, and no wrapper."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, ScriptModule):
        raise UserError(
            f"a TorchScript module cannot be changed; give {function} the module it is made of"
        )
    if inner := inside(model):
        raise UserError(
            f"this {type(model).__name__} wraps the model, whose layers have other paths in it; "
            f"give the model itself: {function}({'.'.join(['model', *inner])}, ...)"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in all its wrappers."""
    for name in inside(model):
        model = getattr(model, name)
    return model


def inside(model: nn.Module) -> list[str]:
    """Return the attributes that lead through the wrappers of a model to itself; none without."""
    names: list[str] = []
    while name := inner_name(model):
        names.append(name)
        model = getattr(model, name)
    return names


def inner_name(model: nn.Module) -> str | None:
    """Return the attribute in which a wrapper holds a model; None for any other module."""
    if "_orig_mod" in getattr(model, "_modules", ()):
        return "_orig_mod"
    kinds = (kind.__module__ for kind in type(model).__mro__)
    wraps = any(kind.startswith(WRAPPING) for kind in kinds)
    return "module" if wraps and isinstance(getattr(model, "module", None), nn.Module) else None


def check_names(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise UserError if a state_dict is that of `model` in a wrapper, by the names in it."""
    own, prefix = list(model.state_dict()), ""
    while not any(f"{prefix}{name}" in state for name in own):
        longer = [f"{prefix}{inner}." for inner in INNER]
        found = [each for each in longer if any(str(name).startswith(each) for name in state)]
        if not found:
            return
        prefix = found[0]
    if prefix:
        raise UserError(
            f"the names of the state_dict begin with {prefix}, as those of a wrapper do "
            f"(DistributedDataParallel, AveragedModel, torch.compile); take "
            f"model.{prefix}state_dict(), or "
            f"{{name.removeprefix({prefix!r}): x for name, x in state.items()}}"
        )
