"""What a launch is told of its inputs, and the tiles it works in."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from asap_exp.ops.kernels.tiles import LOG2_E, block, mask_bytes, operand, unit_stride

FEW = 4
"""Heads a processor: it has room for so many programs of four warps with 128 registers a thread.

Two or three where a program needs more: refined, wide or float32.
"""


@dataclass(frozen=True)
class Problem:
    """q `[B, H, N, D]`, k and v `[B, H, M, ..]` as kernels read them; logits are slope <q, k>."""

    q: Tensor
    k: Tensor
    v: Tensor
    padding: Tensor | None
    num_iters: int
    slope: float

    @staticmethod
    def of(
        q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, num_iters: int, slope: float
    ) -> "Problem":
        q, k, v = (unit_stride(x) for x in (q, k, v))
        return Problem(q, k, v, mask_bytes(padding), num_iters, slope)

    @property
    def programs(self) -> int:
        """One a head."""
        return self.q.shape[0] * self.q.shape[1]

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def n(self) -> int:
        return self.q.shape[2]

    @property
    def m(self) -> int:
        return self.k.shape[2]

    @property
    def to_log2(self) -> float:
        """From <q, k> to logits in units of log 2."""
        return self.slope * LOG2_E

    @property
    def log2_ratio(self) -> float:
        """log2(n / m); padding needs n = m, so that the valid tokens are as many on both sides."""
        return math.log2(self.n / self.m)

    @property
    def logits(self) -> dict[str, object]:
        """The constants of every kernel that makes logits."""
        d = self.q.shape[3]
        has_padding = self.padding is not None
        return {
            "D": d,
            "BLOCK_D": block(d),
            "OPERAND": operand(self.q),
            "PRECISION": "ieee",
            "HAS_PADDING": has_padding,
        }

    @property
    def values(self) -> dict[str, object]:
        """The constants of every kernel that reads values too."""
        width = self.v.shape[3]
        v_operand = operand(self.v)
        return self.logits | {"V_WIDTH": width, "BLOCK_V": block(width), "V_OPERAND": v_operand}

    @property
    def few(self) -> bool:
        """Whether (nearly) all heads run at a time even with more warps each.

        Then a head's own time counts, and the code's size: what a model's other kernels pushed out
        of the instruction cache comes back line by line, and fewer values a thread are less code.
        """
        return self.programs <= FEW * multiprocessors(self.q.device)

    def on_chip_warps(self, up_to_64: int, beyond: int) -> int:
        """The warps of a head whose logits are on chip; more where the others would spill."""
        long = max(self.n, self.m) > 64
        if torch.float32 in (self.q.dtype, self.v.dtype):
            least = 16 if long else 8
        elif max(self.q.shape[3], self.v.shape[3]) > 64:
            least = 8 if long else 4
        else:
            least = 1
        return max(beyond if long else up_to_64, least)

    @property
    def tile(self) -> tuple[int, int, int]:
        """Tokens of the anchored and of the streamed side, and warps, of a pass over the logits."""
        widest = max(self.q.shape[3], self.v.shape[3])
        if widest > 64 or torch.float32 in (self.q.dtype, self.v.dtype):
            return 64, 32, 4
        return 128, 64, 4

    @property
    def gradient_tile(self) -> tuple[int, int, int]:
        """The same where several tiles are on chip at once."""
        x_block, y_block, warps = self.tile
        return x_block, y_block, max(warps, x_block // 16)


def multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # in the interpreter
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def unwritten_output(q: Tensor, v: Tensor) -> Tensor:
    """`[B, H, N, width of v]`, in memory `[B, N, H, width]`: ready for the output projection."""
    batch, heads, n, _ = q.shape
    return v.new_empty(batch, n, heads, v.shape[3]).transpose(1, 2)


def strides(*tensors: Tensor) -> list[int]:
    """Batch, head and token strides of each."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def head_strides(*duals: Tensor | None) -> list[int]:
    """From one head to the next in `[B, H, ..]`; 0 for what is absent."""
    return [0 if dual is None else dual.stride(1) for dual in duals]
