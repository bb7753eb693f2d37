"""Tokens at equal distances among the valid ones of each sample, in one launch.

One program per sample counts the valid tokens, then numbers them. In plain PyTorch that is some
thirty launches, each of which takes as long. Letters: see `kernels.tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block, mask_bytes, valid_tokens

MOST_AT_ONCE = 1024
"""Tokens that a program reads at once."""


# fmt: off
@triton.jit
def sequence_kernel(
    padding, tokens, weight, n, count, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    # fmt: on
    """Store the indices of `count` tokens and how many valid ones each of them stands for.

    A sample without a valid token counts as unpadded. One with at most `count` of them gets all,
    then padded ones, whose weight is 0.
    """
    sample = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_N)
    number = 0
    for first in range(0, n, BLOCK_N):
        number += tl.sum(valid_tokens(padding, sample, first + i, n, True).to(tl.int32), axis=0)
    unpadded = number == 0
    # 64 bits, since products of numbers and ranks may need more than 32
    number = tl.where(unpadded, n, number).to(tl.int64)
    all_of_them = number <= count
    before = 0
    for first in range(0, n, BLOCK_N):
        index = first + i
        there = index < n
        valid = tl.where(unpadded, there, valid_tokens(padding, sample, index, n, True))
        rank = (before + tl.cumsum(valid.to(tl.int32), axis=0) - 1).to(tl.int64)
        # The smallest c for which (2 c + 1) number / (2 count) is not below the rank
        c = (2 * count * rank + number - 1) // (2 * number)
        taken = valid & ((2 * c + 1) * number < 2 * count * (rank + 1))
        place = tl.where(all_of_them, tl.where(valid, rank, number + index - rank - 1), c)
        taken = tl.where(all_of_them, there, taken) & (place < count)
        tl.store(tokens + sample * count + place, index.to(tl.int64), mask=taken)
        before += tl.sum(valid.to(tl.int32), axis=0)
    c = tl.arange(0, BLOCK_C)
    # Rounded as PyTorch rounds, so that padding a text equals cutting it
    share = tl.div_rn(number.to(tl.float32), count * 1.0)
    share = tl.where(all_of_them, (c < number).to(tl.float32), share)
    tl.store(weight + sample * count + c, share, mask=c < count)


@torch.library.custom_op("asap_exp::sequence_tokens", mutates_args=())
def sequence_tokens(padding: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of `count` tokens of each sample, and their weights, `[B, 1, count]`.

    `padding` is `[B, N]`, true at absent tokens, and `count` at most N.
    """
    tokens, weight = _results(padding, count)
    batch, n = padding.shape
    if batch:
        with torch.cuda.device_of(padding):
            sequence_kernel[(batch,)](
                mask_bytes(padding), tokens, weight, n, count,
                BLOCK_N=min(block(n), MOST_AT_ONCE), BLOCK_C=block(count), **EVERY_LAUNCH,
            )  # fmt: skip
    return tokens, weight


@sequence_tokens.register_fake
def _(padding: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return _results(padding, count)


def _results(padding: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = padding.shape[0], 1, count
    return (
        padding.new_empty(shape, dtype=torch.int64),
        padding.new_empty(shape, dtype=torch.float32),
    )
