"""Tensors anywhere in nested values, also in mappings and dataclasses that pytree does not know."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


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
