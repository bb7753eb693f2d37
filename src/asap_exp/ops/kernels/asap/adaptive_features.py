"""Kernels of the adaptive features: products of a query with tokens pooled at the ends of a slice.

The pooled tokens of all slices are weighted before they meet a query: there is one vector
u = sum_j a_j k_j + b_j q_j per head, and the features add up to <q_i, u>. `inverse_count` is 1 over
the number of tokens that exist. Source of the formula: `asap_exp.ops.reference.adaptive`. Letters:
see `kernels.tiles`.
"""

import triton
import triton.language as tl

from asap_exp.ops.kernels.tiles import concat_rows, load_tile, product, valid_tokens
from asap_exp.ops.reference import adaptive

COUNT = tl.constexpr(adaptive.COUNT)


@triton.jit
def centred_rows(z, exists, inverse_count):
    """Return rows z minus their mean over the positions that exist, 0 elsewhere."""
    z = tl.where(exists, z, 0.0)
    return tl.where(exists, z - (tl.sum(z, 1) * inverse_count)[:, None], 0.0)


@triton.jit
def standardised(centred, inverse_count):
    """Return centred rows divided by their standard deviation, and 1 / deviation."""
    variance = tl.sum(centred * centred, 1) * inverse_count
    spread = variance > 0
    inverse = tl.where(spread, tl.rsqrt(tl.where(spread, variance, 1.0)), 0.0)
    return centred * inverse[:, None], inverse


@triton.jit
def ends(z, exists):
    """Return exp(z) and exp(-z) where tokens exist, not normalised.

    No |z| exceeds the square root of the number of tokens, so no exponential overflows.
    """
    return tl.where(exists, tl.exp(z), 0.0), tl.where(exists, tl.exp(-z), 0.0)


@triton.jit
def end_weights(z, weight, exists, s, slices):
    """Return sum_l w_l softmax_j(z_lj) + w'_l softmax_j(-z_lj), `[SIZE]`; w' follows w."""
    upper, lower = ends(z, exists)
    w = tl.load(weight + s, mask=s < slices, other=0.0).to(tl.float32)
    w_lower = tl.load(weight + slices + s, mask=s < slices, other=0.0).to(tl.float32)
    w /= tl.maximum(tl.sum(upper, 1), 1e-30)
    w_lower /= tl.maximum(tl.sum(lower, 1), 1e-30)
    return tl.sum(upper * w[:, None] + lower * w_lower[:, None], 0)


@triton.jit
def adaptive_weights(x, y, weight, h, valid, count, first, slices, ROWS: tl.constexpr):
    """Return the weights of the potentials `[ROWS]`, of the keys and of the queries `[SIZE]`.

    x and y are head h's projections `[ROWS, SIZE]` on the slices from `first` on; `weight` is `[H,
    5, slices]`.
    """
    weight += h * COUNT * slices
    exists = valid[None, :]
    inverse_count = 1.0 / tl.maximum(count, 1).to(tl.float32)
    x, inverse_x = standardised(centred_rows(x, exists, inverse_count), inverse_count)
    y, inverse_y = standardised(centred_rows(y, exists, inverse_count), inverse_count)
    s = first + tl.arange(0, ROWS)
    w = tl.load(weight + s, mask=s < slices, other=0.0).to(tl.float32)
    keys = end_weights(y, weight + slices, exists, s, slices)
    queries = end_weights(x, weight + 3 * slices, exists, s, slices)
    return w * inverse_x * inverse_y, keys, queries


@triton.jit
def adaptive_weights_of_both(xy, weight, h, exists, inverse_count, slices, ROWS: tl.constexpr):
    """Return `adaptive_weights` of all slices at once; xy is centred x above y `[2 ROWS, SIZE]`."""
    weight += h * COUNT * slices
    z, inverse = standardised(xy, inverse_count)
    upper, lower = ends(z, exists)
    both = concat_rows(upper, lower)  # `[2, 2, ROWS]` rows: end, side, slice
    row = tl.arange(0, 4 * ROWS)
    s, is_y, is_lower = row % ROWS, row // ROWS % 2, row // (2 * ROWS)
    feature = 3 - 2 * is_y + is_lower  # as in `adaptive_weights`: y's first
    w = tl.load(weight + feature * slices + s, mask=s < slices, other=0.0).to(tl.float32)
    both *= (w / tl.maximum(tl.sum(both, 1), 1e-30))[:, None]
    sides = tl.sum(tl.reshape(both, [2, 2, ROWS, both.shape[1]]), 0)
    queries, keys = tl.split(tl.permute(tl.sum(sides, 1), (1, 0)))
    inverse_x, inverse_y = tl.split(tl.permute(tl.reshape(inverse, [2, ROWS]), (1, 0)))
    s = tl.arange(0, ROWS)
    w = tl.load(weight + s, mask=s < slices, other=0.0).to(tl.float32)
    return w * inverse_x * inverse_y, keys, queries


@triton.jit
def pooled(tile, weights, ones, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Return sum_j weights_j tile_j in two parts, and `ones` times sum_j tile_j, `[16, BLOCK_D]`.

    The matrix units compute the product; a separate row holds the rounding error of the weights.
    """
    row = tl.arange(0, 16)[:, None]
    high = weights.to(OPERAND)
    low = (weights - high.to(tl.float32)).to(OPERAND)
    parts = tl.where(row == 0, high[None, :], tl.where(row == 1, low[None, :], 0.0))
    return product(tl.where(row == 2, ones, parts), tile, OPERAND, PRECISION)


# fmt: off
@triton.jit
def pool(
    head, q, k, partial_sums, padding, f_hat,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, groups,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    # fmt: on
    """Add the partial sums of the potentials and <q, u> to f_hat of a head, and centre it.

    `partial_sums` `[.., groups, 3, n]` holds the partial sums of the potentials, of the keys'
    weights and of the queries' weights.
    """
    b, h = head // heads, head % heads
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    f_hat += head * n
    partial_sums += head * groups * 3 * n
    # [16, BLOCK_D]
    sums = tl.zeros([16, BLOCK_D], tl.float32)
    sums_f, counts = tl.zeros([TOKENS], tl.float32), tl.zeros([TOKENS], tl.int32)
    for first in range(0, n, TOKENS):
        i = first + tl.arange(0, TOKENS)
        valid = valid_tokens(padding, b, i, n, HAS_PADDING)
        f = tl.load(f_hat + i, mask=valid, other=0.0)
        keys, queries = tl.zeros([TOKENS], tl.float32), tl.zeros([TOKENS], tl.float32)
        for group in range(groups):
            partial = partial_sums + group * 3 * n + i
            f += tl.load(partial, mask=valid, other=0.0)
            keys += tl.load(partial + n, mask=valid, other=0.0)
            queries += tl.load(partial + 2 * n, mask=valid, other=0.0)
        # [TOKENS, BLOCK_D]
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
        k_tile = load_tile(k, i, valid, k_n, D, BLOCK_D)
        sums += pooled(k_tile, keys, 0.0, OPERAND, PRECISION)
        sums += pooled(q_tile, queries, 1.0, OPERAND, PRECISION)
        sums_f += f
        counts += valid.to(tl.int32)
        tl.store(f_hat + i, f, mask=i < n)
    row = tl.arange(0, 16)[:, None]
    u, sum_q = tl.sum(tl.where(row < 2, sums, 0.0), 0), tl.sum(tl.where(row == 2, sums, 0.0), 0)
    count = tl.maximum(tl.sum(counts), 1).to(tl.float32)
    mean = (tl.sum(sums_f) + tl.sum(u * sum_q)) / count
    tl.debug_barrier()  # other threads stored what is read here
    for first in range(0, n, TOKENS):
        i = first + tl.arange(0, TOKENS)
        valid = valid_tokens(padding, b, i, n, HAS_PADDING)
        q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D).to(tl.float32)
        f = tl.load(f_hat + i, mask=valid, other=0.0) + tl.sum(q_tile * u[None, :], 1)
        tl.store(f_hat + i, tl.where(valid, f - mean, 0.0), mask=i < n)


# fmt: off
@triton.jit
def pool_kernel(
    q, k, partial_sums, padding, f_hat,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, groups,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_PADDING: tl.constexpr,
):
    """Run `pool`; one program per head."""
    pool(
        tl.program_id(0).to(tl.int64), q, k, partial_sums, padding, f_hat,
        q_b, q_h, q_n, k_b, k_h, k_n, heads, n, groups,
        D, BLOCK_D, TOKENS, OPERAND, PRECISION, HAS_PADDING,
    )
# fmt: on
