"""Weighted logit features: statistics of a query's logits, standardised per key; no gradient.

The mathematics is that of `reference.logit_rows`. The mean and deviation of a column follow from
the mean and covariance of the queries, so one pass over the logits suffices, and nothing of size
n x m is stored. Letters: see `kernels.tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.kernels.launch import Launch, strides
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, load_tile, product, valid_tokens
from asap_exp.ops.masking import blank, centre, effective_padding
from asap_exp.ops.products import AS_ALLOWED
from asap_exp.ops.reference import logit_rows as reference

CONSTANT = tl.constexpr(reference.CONSTANT)
COUNT = tl.constexpr(reference.COUNT)


def logit_dual(
    q: Tensor,
    k: Tensor,
    logit_weight: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    products: str = AS_ALLOWED,
) -> Tensor:
    """Compute logit_weight `[H, 3]` . `logit_features`, centred, `[B, H, N]` float32."""
    return _logit_dual(q, k, logit_weight, key_padding_mask, scale / eps, products)


@torch.library.custom_op("asap_exp::logit_dual", mutates_args=())
def _logit_dual(
    q: Tensor,
    k: Tensor,
    logit_weight: Tensor,
    padding: Tensor | None,
    slope: float,
    products: str,
) -> Tensor:
    p = Launch.of(q, k, k, padding, 1, slope, products)
    dual = q.new_empty(q.shape[:3], dtype=torch.float32)
    if dual.numel() == 0:
        return dual
    mean, inverse = column_scales(q, k, padding, slope)
    n_block, m_block, warps = p.tile
    with torch.cuda.device_of(q):
        logit_kernel[(p.programs * triton.cdiv(p.n, n_block),)](
            p.q, p.k, mean, inverse, logit_weight.contiguous(), p.padding, dual,
            *strides(p.q, p.k), p.heads, p.n, p.m,
            **p.logits, BLOCK_N=n_block, BLOCK_M=m_block, num_warps=warps, **EVERY_LAUNCH,
        )  # fmt: skip
    return centre(dual, effective_padding(padding))


@_logit_dual.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def column_scales(
    q: Tensor, k: Tensor, padding: Tensor | None, slope: float
) -> tuple[Tensor, Tensor]:
    """Return the mean of <q_i, k_j> over queries, and sign(slope) over its deviation, `[B, H, M]`.

    Computed in float64: if a key is nearly orthogonal to the differences of the queries, most of
    the quadratic form cancels.
    """
    q, k = (blank(x, padding, 2).double() for x in (q, k))
    valid = q.new_ones(1, q.shape[2], dtype=torch.bool) if padding is None else ~padding
    count = valid.sum(dim=-1).clamp(min=1)[:, None, None]
    mean = q.sum(dim=2) / count
    centred = blank(q - mean[:, :, None], padding, 2)
    covariance = centred.mT @ centred / count[..., None]
    column_mean = (k @ mean[..., None])[..., 0]
    deviation = ((k @ covariance) * k).sum(dim=-1).clamp(min=0).sqrt()
    spread = deviation > reference.CONSTANT * column_mean.abs()
    sign = (slope > 0) - (slope < 0)
    return column_mean.float(), torch.where(spread, sign / deviation, 0.0).float()


@triton.jit
def weighted(mean, deviation, highest, weight):
    """Return the sum of the three features times their weights `[3]` at `weight`."""
    w = tl.load(weight).to(tl.float32) * mean
    w += tl.load(weight + 1).to(tl.float32) * deviation
    return w + tl.load(weight + 2).to(tl.float32) * highest


@triton.jit
def logit_features_in_registers(S, weight, sign, valid, inverse_count, NO_TAIL: tl.constexpr):
    """Compute logit_weight . features `[len(valid)]` from the products S of q and k, not centred.

    NO_TAIL: all tokens are valid. `sign` is the sign of the factor from S to the logits.
    """
    mean = tl.sum(S, 0) * inverse_count  # the products of absent queries are 0
    Z = S - mean[None, :]
    if not NO_TAIL:
        Z = tl.where(valid[:, None], Z, 0.0)
    variance = tl.sum(Z * Z, 0) * inverse_count
    spread = (variance > CONSTANT * CONSTANT * mean * mean) & valid
    Z *= tl.where(spread, sign * tl.rsqrt(tl.where(spread, variance, 1.0)), 0.0)[None, :]
    there = Z
    if not NO_TAIL:
        there = tl.where(valid[None, :], Z, float("-inf"))
    highest = tl.max(there, 1)
    mean = tl.sum(Z, 1) * inverse_count
    Z -= mean[:, None]
    if not NO_TAIL:
        Z = tl.where(valid[None, :], Z, 0.0)
    deviation = tl.sqrt(tl.sum(Z * Z, 1) * inverse_count)
    return tl.where(valid, weighted(mean, deviation, highest, weight), 0.0)


# fmt: off
@triton.jit
def logit_kernel(
    q, k, column_mean, column_inverse, weight, padding, dual,
    q_b, q_h, q_n, k_b, k_h, k_n, heads, n, m,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Store weight . features of BLOCK_N queries of a head, not centred, in `dual` `[.., n]`."""
    blocks = tl.cdiv(n, BLOCK_N)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    sample, h = head // heads, head % heads
    i = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid_i = valid_tokens(padding, sample, i, n, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + sample * q_b + h * q_h, i, valid_i, q_n, D, BLOCK_D)
    k += sample * k_b + h * k_h
    average, squares = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    count = 0.0
    for first in range(0, m, BLOCK_M):
        j = first + tl.arange(0, BLOCK_M)
        valid_j = valid_tokens(padding, sample, j, m, HAS_PADDING)
        # [BLOCK_N, BLOCK_M]
        S = product(q_tile, tl.trans(load_tile(k, j, valid_j, k_n, D, BLOCK_D)), OPERAND, PRECISION)
        mean = tl.load(column_mean + head * m + j, mask=valid_j, other=0.0)
        inverse = tl.load(column_inverse + head * m + j, mask=valid_j, other=0.0)
        # [BLOCK_N, BLOCK_M]
        Z = (S - mean[None, :]) * inverse[None, :]
        highest = tl.maximum(highest, tl.max(tl.where(valid_j[None, :], Z, float("-inf")), 1))
        # Sums of squares about each tile's mean combine without cancellation (Chan et al., 1979).
        more = tl.sum(valid_j.to(tl.float32))
        tile_average = tl.sum(Z, 1) / tl.maximum(more, 1.0)
        centred = tl.where(valid_j[None, :], Z - tile_average[:, None], 0.0)
        apart, both = tile_average - average, tl.maximum(count + more, 1.0)
        average += apart * (more / both)
        squares += tl.sum(centred * centred, 1) + apart * apart * (count * more / both)
        count += more
    deviation = tl.sqrt(squares / tl.maximum(count, 1.0))
    result = weighted(average, deviation, highest, weight + h * COUNT)
    tl.store(dual + head * n + i, tl.where(valid_i, result, 0.0), mask=i < n)
