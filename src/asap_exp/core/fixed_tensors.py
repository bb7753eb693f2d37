"""Tensors at fixed addresses, which a CUDA graph reads again and again."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Shape = tuple[Any, ...]


def shape_of(tree: Any) -> Shape:
    """Return what two trees of tensors must have in common to be copied into each other."""
    leaves, structure = pytree.tree_flatten(tree)
    each = ((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in leaves)
    return (str(structure), *each)


class FixedTensors:
    """Copy of a tree of tensors, into which others of its shape are copied."""

    def __init__(self, tree: Any) -> None:
        self.tree = pytree.tree_map_only(Tensor, torch.clone, tree)

    def fill(self, tree: Any, keep: Tensor | None = None) -> None:
        """Copy `tree` in; where the boolean scalar `keep` is True the present values stay."""
        mine, new = pytree.tree_leaves(self.tree), pytree.tree_leaves(tree)
        for fixed, value in zip(mine, new, strict=True):
            if not isinstance(fixed, Tensor):
                continue
            if keep is None:
                fixed.copy_(value)
            else:
                torch.where(keep, fixed, value, out=fixed)
