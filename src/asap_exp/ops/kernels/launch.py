"""The inputs of a launch, as the kernels read them, and its tile sizes."""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from asap_exp.ops.call import Call, device_of, one_wave
from asap_exp.ops.kernels.tiles import LOG2_E, block, mask_bytes, operand, unit_stride
from asap_exp.ops.products import AS_ALLOWED, IEEE, THREE_PASSES, float32_products

SMALLEST_SLOPE = 1e-9
"""Logit factor at or below which it counts as 0: the bfloat16 kernels divide duals by it."""


class Duals(NamedTuple):
    """Duals of all updates, in units of log 2, kept for a gradient or as a result.

    `rows` `[B, H, T + 1, N]` are f^0 .. f^T, `cols` `[B, H, T, M]` are g^1 .. g^T.
    """

    rows: Tensor
    cols: Tensor


class Launch(NamedTuple):
    """Inputs q `[B, H, N, D]`, k and v `[B, H, M, ..]` of kernels; logits are slope <q, k>."""

    q: Tensor
    k: Tensor
    v: Tensor
    padding: Tensor | None
    num_iters: int
    slope: float
    products: str = IEEE
    """Products of float32 matrices. Not read for others."""

    @staticmethod
    def of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        padding: Tensor | None,
        num_iters: int,
        slope: float,
        products: str = AS_ALLOWED,
    ) -> "Launch":
        q, k, v = (unit_stride(x) for x in (q, k, v))
        has_float32 = torch.float32 in (q.dtype, v.dtype)
        products = float32_products(products) if has_float32 else IEEE
        return Launch(q, k, v, mask_bytes(padding), num_iters, slope, products)

    def call(
        self,
        *,
        keeps_duals: bool = False,
        slices: int = 0,
        refine: int = 0,
        logit_features: bool = False,
    ) -> Call:
        """Return the `Call` that routes decide by. Built by position: every call pays for it."""
        q, _, v, padding, num_iters, slope, _ = self
        batch, heads, n, head_dim = q.shape
        _, _, m, value_dim = v.shape
        device = device_of(q)
        constant = abs(slope * LOG2_E) <= SMALLEST_SLOPE
        return Call(
            n, m, head_dim, value_dim, q.dtype, v.dtype, num_iters, constant, padding is not None,
            keeps_duals, False, slices, refine, False, logit_features,
            one_wave(batch * heads, device), device.capability,
        )  # fmt: skip

    @property
    def programs(self) -> int:
        """Number of programs: one per head."""
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
        """Factor from <q, k> to logits in units of log 2."""
        return self.slope * LOG2_E

    @property
    def log2_ratio(self) -> float:
        """log2(n / m); padding requires n = m, so both sides have equally many valid tokens."""
        return math.log2(self.n / self.m)

    @property
    def logits(self) -> dict[str, object]:
        """Constants of every kernel that computes logits."""
        d = self.q.shape[3]
        has_padding = self.padding is not None
        return {
            "D": d,
            "BLOCK_D": block(d),
            "OPERAND": operand(self.q),
            "PRECISION": self.products,
            "HAS_PADDING": has_padding,
        }

    @property
    def values(self) -> dict[str, object]:
        """Constants of every kernel that also reads values."""
        width = self.v.shape[3]
        v_operand = operand(self.v)
        return self.logits | {"V_WIDTH": width, "BLOCK_V": block(width), "V_OPERAND": v_operand}

    @property
    def one_wave(self) -> bool:
        """True if the grid of one program per head fits on the GPU at once."""
        return one_wave(self.programs, device_of(self.q))

    def register_warps(self, up_to_64: int, beyond: int) -> int:
        """Return the warps per program for a head's logits in registers: enough not to spill."""
        long = max(self.n, self.m) > 64
        if self.has_float32:
            least = 8 if long else 4
            least *= 2 if self.products == IEEE else 1
        elif self.widest > 64:
            least = 8 if long else 4
        else:
            least = 1
        return max(beyond if long else up_to_64, least)

    @property
    def has_float32(self) -> bool:
        return torch.float32 in (self.q.dtype, self.v.dtype)

    @property
    def widest(self) -> int:
        return max(self.q.shape[3], self.v.shape[3])

    @property
    def few_blocks(self) -> bool:
        """True if blocks of 128 tokens leave half of the GPU idle."""
        blocks = self.programs * triton.cdiv(max(self.n, self.m), 128)
        return 2 * blocks <= device_of(self.q).multiprocessors

    @property
    def tile(self) -> tuple[int, int, int]:
        """Tile of a pass over the logits: anchored tokens, streamed tokens and warps."""
        wide = self.widest > 64
        if not self.has_float32:
            return (64, 32, 4) if wide else (128, 64, 4)
        if self.products == IEEE:
            return (64, 32, 4) if wide else (64, 64, 4)
        if wide:
            return 32, 64, 4
        return (32, 128, 4) if self.few_blocks else (128, 128, 8)

    @property
    def half_step_tile(self) -> tuple[int, int, int, int]:
        """Tile of a half step, and the channels that its products read at a time; 0 for all."""
        if self.q.dtype != torch.float32 or self.products != IEEE:
            return *self.tile, 0
        return (32, 128, 4, 32) if self.few_blocks else (64, 128, 4, 16)

    @property
    def attention_tile(self) -> tuple[int, int, int]:
        """Tile of a pass that also multiplies with values: anchored, streamed tokens and warps."""
        if self.two_parts and self.little_shared_memory:
            return (64, 32, 4) if self.widest > 64 else (128, 32, 8)
        if not self.has_float32 or self.products == IEEE or self.few_blocks:
            return self.tile
        return (128, 32, 8) if self.widest > 64 else (128, 64, 8)

    @property
    def two_parts(self) -> bool:
        """True if products hold two parts of every tile, as three passes do."""
        return self.has_float32 and self.products == THREE_PASSES

    @property
    def little_shared_memory(self) -> bool:
        """True on a GPU whose blocks have 163 KiB, where others have 227."""
        return device_of(self.q).capability == (8, 0)

    @property
    def gradient_tile(self) -> tuple[int, int, int]:
        """Tile of a pass that holds several tiles at once: anchored, streamed tokens, warps."""
        if not self.has_float32:
            x_block, y_block, warps = self.tile
            return x_block, y_block, max(warps, x_block // 16)
        if self.widest <= 64 and self.products == IEEE:
            return 64, 64, 4
        if self.two_parts and self.widest > 64:
            return (32, 32, 4) if self.little_shared_memory else (32, 64, 4)
        return (32, 64, 4) if self.few_blocks and self.products != IEEE else (64, 32, 4)


def unwritten_output(q: Tensor, v: Tensor) -> Tensor:
    """Allocate `[B, H, N, width of v]`, stored as `[B, N, H, width]` for the output projection."""
    batch, heads, n, _ = q.shape
    return v.new_empty(batch, n, heads, v.shape[3]).transpose(1, 2)


def strides(*tensors: Tensor) -> list[int]:
    """Return the batch, head and token strides of each tensor."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def head_strides(*duals: Tensor | None) -> list[int]:
    """Return the strides from one head to the next in `[B, H, ..]`; 0 for an absent dual."""
    return [0 if dual is None else dual.stride(1) for dual in duals]
