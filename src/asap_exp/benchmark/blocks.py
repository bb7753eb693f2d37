"""Functions of queries, a block at a time, so that no float64 matrix of all pairs is ever held."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_ENTRIES = 2**25
"""Maximum number of pairs of tokens, over all samples and heads, in a block: 256 MiB in float64."""


def in_blocks(function: Callable[[Tensor], Tensor], q: Tensor, keys: int) -> Tensor:
    """Return `function(q)` for `q` `[B, H, N, D]`, computed from some rows of `q` at a time.

    Row i of the result, along dimension 2, may depend on row i of `q` alone, compared with `keys`
    tokens. For the gradient, each block is computed again.
    """
    batch, heads = q.shape[:2]
    rows = max(1, BLOCK_ENTRIES // (batch * heads * keys))
    parts = [checkpoint(function, part, use_reentrant=False) for part in q.split(rows, dim=2)]
    return torch.cat(parts, dim=2)
