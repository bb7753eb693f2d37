"""Tensors anywhere in nested values, also in mappings and dataclasses that pytree does not know."""

import copy
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor of a nested value, in its order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def leaves(value: Any) -> Iterator[Any]:
    """Yield what a nested value is made of: its tensors, and all else that holds no other value."""
    for leaf in tree_leaves(value):
        inner = parts(leaf)
        if inner is None:
            yield leaf
        else:
            for part in inner.values():
                yield from leaves(part)


def parts(value: Any) -> dict[Any, Any] | None:
    """Return the items of a mapping, or the fields of a dataclass; None of anything else."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a copy of a nested value with `function` of each tensor in its place.

    A mapping that is neither a dict nor a UserDict becomes a dict.
    """
    return tree_map(lambda leaf: mapped_leaf(function, leaf), value)


def mapped_leaf(function: Callable[[Tensor], Tensor], leaf: Any) -> Any:
    """Do so for what pytree takes for a leaf."""
    if isinstance(leaf, Tensor):
        return function(leaf)
    inner = parts(leaf)
    if inner is None:
        return leaf
    inner = {name: mapped(function, part) for name, part in inner.items()}
    if isinstance(leaf, Mapping) and not isinstance(leaf, dict | UserDict):
        return inner
    copied = copy.copy(leaf)
    for name, part in inner.items():
        if isinstance(leaf, Mapping):
            copied[name] = part
        else:
            object.__setattr__(copied, name, part)  # works on a frozen dataclass too
    return copied
