"""Projections of a head's queries and keys on all slices, and the queries' linear features."""

import torch
import triton
import triton.language as tl

from asap_exp.ops.kernels.tiles import INTERPRETED, block, load_tile, product, valid_tokens


def constants(slices: int, dtype: torch.dtype) -> dict[str, object]:
    """Return the constants of `project`.

    theta is float32 whatever the dtype of q, so it has more than one term. bfloat16 inputs are
    exact in one term, so the terms of theta are stacked in one product. For other inputs, the
    product splits both factors itself; a second term of 0 then fills the 16 rows that it needs.
    """
    padded = block(slices, 8)
    exact = INTERPRETED or dtype == torch.float32
    return {
        "SLICES": padded,
        "TERMS": 2 if dtype == torch.bfloat16 or padded == 8 else 1,
        "THETA_OPERAND": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        "THETA_PRECISION": "ieee" if exact or dtype == torch.bfloat16 else "bf16x3",
    }


# fmt: off
@triton.jit
def load_directions(
    theta, slices,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr, TERMS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    # fmt: on
    """Load theta rounded to OPERAND and, below it, the remainders, `[TERMS * SLICES, BLOCK_D]`."""
    row = tl.arange(0, TERMS * SLICES)
    s = row % SLICES
    exact = load_tile(theta, s, s < slices, D, D, BLOCK_D).to(tl.float32)
    rounded = exact.to(OPERAND)
    rest = (exact - rounded.to(tl.float32)).to(OPERAND)
    return tl.where((row < SLICES)[:, None], rounded, rest)


@triton.jit
def project(
    directions, tile, SLICES: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr
):
    """Return <theta_l, tile_i>, `[SLICES, tokens]`."""
    terms = product(directions, tl.trans(tile), directions.dtype, PRECISION)
    return tl.sum(tl.reshape(terms, [TERMS, SLICES, tile.shape[0]]), 0)


@triton.jit
def load_query_weight(query_weight, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load the weights of q `[BLOCK_D]` and of |q|^2."""
    d = tl.arange(0, BLOCK_D)
    u = tl.load(query_weight + d, mask=d < D, other=0.0).to(tl.float32)
    return u, tl.load(query_weight + D).to(tl.float32)


@triton.jit
def query_features(q_tile, u, u_square):
    """Return <q, u> + u_square |q|^2, `[tokens]`."""
    q_tile = q_tile.to(tl.float32)
    return tl.sum(q_tile * (u[None, :] + u_square * q_tile), axis=1)


# fmt: off
@triton.jit
def project_tokens(
    first, head, directions, q, k, query_weight, padding, projections, linear,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, slices, slope,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr, TERMS: tl.constexpr, THETA_PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_QUERY_WEIGHT: tl.constexpr,
):
    # fmt: on
    """Project a block of tokens of a head on all slices; padded tokens give 0."""
    b, h = head // heads, head % heads
    i = first + tl.arange(0, BLOCK_N)
    valid = valid_tokens(padding, b, i, n, HAS_PADDING)
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q + b * q_b + h * q_h, i.to(tl.int64), valid, q_n, D, BLOCK_D)
    k_tile = load_tile(k + b * k_b + h * k_h, i.to(tl.int64), valid, k_n, D, BLOCK_D)
    # [SLICES, BLOCK_N]
    x = project(directions, q_tile, SLICES, TERMS, THETA_PRECISION)
    y = project(directions, k_tile, SLICES, TERMS, THETA_PRECISION) * slope

    s = tl.arange(0, SLICES)
    target = projections + (head * 2 * slices + s)[:, None] * n + i[None, :]
    inside = (s < slices)[:, None] & (i < n)[None, :]
    tl.store(target, x, mask=inside)
    tl.store(target + slices * n, y, mask=inside)
    features = tl.zeros([BLOCK_N], tl.float32)
    if HAS_QUERY_WEIGHT:
        u, u_square = load_query_weight(query_weight + h * (D + 1), D, BLOCK_D)
        features += query_features(q_tile, u, u_square)
    tl.store(linear + head * n + i, features, mask=i < n)


# fmt: off
@triton.jit
def project_kernel(
    q, k, theta, query_weight, padding, projections, linear,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, slices, slope,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
    SLICES: tl.constexpr, TERMS: tl.constexpr,
    THETA_OPERAND: tl.constexpr, THETA_PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_QUERY_WEIGHT: tl.constexpr,
):
    """Run `project_tokens`; one program per block of tokens of a head."""
    head = tl.program_id(0).to(tl.int64)
    theta += head % heads * slices * D
    project_tokens(
        tl.program_id(1) * TOKENS, head,
        load_directions(theta, slices, D, BLOCK_D, SLICES, TERMS, THETA_OPERAND),
        q, k, query_weight, padding, projections, linear,
        q_b, q_h, q_n, k_b, k_h, k_n, heads, n, slices, slope,
        D, BLOCK_D, TOKENS, SLICES, TERMS, THETA_PRECISION, HAS_PADDING, HAS_QUERY_WEIGHT,
    )
# fmt: on
