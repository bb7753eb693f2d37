"""Sorts along slices: coordinates, their order, and the entries of soft and hard sorts.

With the inverse sum of row r and the sharpness log2(e) / tau,

    P[r, i] = exp2(-(s_(r) - s_i)^2 sharpness) inverse_r.

Coordinates s stay in their own units: their gaps are exact, or nearly, before anything is rounded.
A row's largest exponent is that of its own token, 0, so no maximum is subtracted. A padded or
absent token is far from all ranks, and a rank beyond the valid tokens has the inverse sum 0, so no
tile needs a mask. Letters: see `kernels.tiles`; L slices, r ranks.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block, valid_tokens

FAR = tl.constexpr(1e18)
"""Coordinate of a padded or absent token, over the root of the sharpness: the exponent of a gap to
it is finite, and its entries are 0."""

SLOPE = tl.constexpr(2 * math.log(2))
"""The logarithm of an entry falls by SLOPE sharpness times the gap for each unit that it grows."""

SHARPEST, BLURRIEST = 1e-24, 1e24
"""Range of tau to compute with: sorts are hard, or their rows uniform, long before either end."""

STAGES = 1
"""Loads ahead of their use: more of them take registers, and were spilled."""


class Side(NamedTuple):
    """Coordinates `[B, H, L, N]` of the tokens of one side, and their sorts."""

    s: Tensor
    ranked: Tensor
    """Sorted, descending; -inf beyond the valid tokens."""
    order: Tensor
    """The token of each rank."""
    inverse: Tensor
    """Inverse sums of the rows of exponentials; 0 beyond the valid tokens."""


class Sorts(NamedTuple):
    """What all launches of a call share: padding, and the operands of products."""

    hard: bool
    sharpness: float
    padding: Tensor | None
    """A byte per token `[B, N]`."""
    operand: tl.dtype
    products: str

    @property
    def constants(self) -> dict[str, object]:
        return {
            "HAS_PADDING": self.padding is not None,
            "OPERAND": self.operand,
            "PRECISION": self.products,
        }


@triton.jit
def tokens_of(s, row, i, valid, sharpness):
    """Load the coordinates of tokens i."""
    return tl.load(s + row + i, mask=valid, other=FAR / tl.sqrt(sharpness))


@triton.jit
def sorted_of(ranked, row, r, n):
    """Load the sorted coordinates of ranks r, 0 beyond the valid tokens; return also which are."""
    t = tl.load(ranked + row + r, mask=r < n, other=float("-inf"))
    valid = t != float("-inf")
    return tl.where(valid, t, 0.0), valid


@triton.jit
def ranks_of(ranked, order, inverse, row, r, n):
    """Load the sorted coordinates, tokens (-1 for none) and inverse sums of ranks r."""
    t, valid = sorted_of(ranked, row, r, n)
    token = tl.load(order + row + r, mask=valid, other=-1)
    return t, token, tl.load(inverse + row + r, mask=valid, other=0.0)


@triton.jit
def sort_entries(t, s, inverse, token, i, sharpness, HARD: tl.constexpr):
    """Return entries of a sort from what broadcasts to its tile."""
    if HARD:
        return tl.where(token == i, 1.0, 0.0)
    gap = t - s
    return tl.exp2(gap * (gap * -sharpness)) * inverse


# fmt: off
@triton.jit
def totals_kernel(
    s, ranked, padding, inverse, heads_slices, n, sharpness,
    BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Write the inverse sums of the rows of exponentials, 0 beyond the valid tokens."""
    blocks = tl.cdiv(n, BLOCK_R)
    slice_ = (tl.program_id(0) // blocks).to(tl.int64)
    r = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = slice_ * n
    t, valid_r = sorted_of(ranked, row, r, n)
    total = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, n, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        valid_i = valid_tokens(padding, slice_ // heads_slices, i, n, HAS_PADDING)
        s_i = tokens_of(s, row, i, valid_i, sharpness)
        # Ranks are the columns: a thread sums up those of its own.
        entries = sort_entries(t[None, :], s_i[:, None], 1.0, -1, -1, sharpness, False)
        total += tl.sum(entries, axis=0)
    # A valid row has at least the exponential of its own token, 1, or is NaN.
    of_valid = tl.where(valid_r, 1.0 / tl.where(valid_r, total, 1.0), 0.0)
    tl.store(inverse + row + r, of_valid, mask=r < n)


def sort_side(s: Tensor, absent: Tensor | None, sorts: Sorts) -> Side:
    """Sort contiguous coordinates `[B, H, L, N]`; `absent` `[B, N]` is boolean, True = padded."""
    shown = s if absent is None else s.masked_fill(absent[:, None, None], float("-inf"))
    ranked, order = shown.sort(dim=-1, descending=True)
    side = Side(s, ranked, order, torch.empty_like(s))
    batch, heads, slices, n = s.shape
    r_block = min(block(n, 32), 128)
    totals_kernel[(batch * heads * slices * triton.cdiv(n, r_block),)](
        s, ranked, sorts.padding, side.inverse, heads * slices, n, sorts.sharpness,
        BLOCK_I=32, BLOCK_R=r_block, HAS_PADDING=sorts.padding is not None,
        num_warps=r_block // 32, num_stages=STAGES, **EVERY_LAUNCH,
    )  # fmt: skip
    return side


class Plan(NamedTuple):
    """The plan `[B, H, N, N]` of a call, and what its gradient needs."""

    plan: Tensor
    weight: Tensor
    """Weights of the slices `[B, H, L]`, 0 where they do not count."""
    costs: Tensor
    """Costs by rank `[B, H, L, N]`, of soft sorts in units of the largest distance; empty if the
    plan was made in registers."""
    left: Side
    right: Side


class Gradients(NamedTuple):
    """Gradients of the sorted and unsorted coordinates of either side, and of the distances."""

    left: tuple[Tensor, Tensor]
    right: tuple[Tensor, Tensor]
    distances: Tensor


SMALLEST_WEIGHT = 2.0**-40
"""Weight of a slice, of all of 1, up to which it is left out."""


def slice_weights(costs: Tensor, temperature: float) -> Tensor:
    """Return softmax(-temperature costs) of the slices `[B, H, L]`, 0 for what is negligible."""
    weight = torch.softmax(-temperature * costs, dim=-1)
    return torch.where(weight <= SMALLEST_WEIGHT, 0.0, weight)  # keeps NaN
