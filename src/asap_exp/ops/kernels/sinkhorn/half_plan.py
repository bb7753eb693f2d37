"""Sums of updates as products of a plan in float16 and scalings, on the matrix units.

A sum over the entries of a plan takes a multiply-add each, and more to bring rows and columns
together; the matrix units take an instruction for 128 of them. E is at most 1, and is stored
2^`RAISED` times as large: entries down to 2^-29 have all eleven bits of float16. A vector is the
sum of two in float16, the largest entry being 2^14 to 2^15: down to 2^-28 of that it has 22 bits.
The matrix units have no product of fewer than `COLUMNS` columns, so both are there several times.

As long as scalings stay below `FAR`, nothing that matters is lost to that range, whatever the next
update does: it changes a scaling by n m at most. Letters: see `kernels.tiles`.
"""

import triton
import triton.language as tl

from asap_exp.ops.kernels.tiles import (
    BY_INTERPRETER,
    fma_bias,
    load_tile,
    log2_plan,
    log2_scaling,
    product,
)

RAISED = tl.constexpr(15.0)
FAR = tl.constexpr(2.0**12)

COLUMNS = tl.constexpr(8)
SMALLEST = tl.constexpr(2.0**-60)


@triton.jit
def half_plan(S, to_log2, g, f):
    """Return exp(S + g + f) 2^RAISED in float16; absent tokens have a dual of -inf."""
    return tl.exp2(log2_plan(S, to_log2, g + RAISED, f)).to(tl.float16)


@triton.jit
def plan_times(E, x, largest):
    """Return sum_j E_ij x_j in float32, of a `half_plan` and x >= 0 with this largest entry."""
    exponent = (tl.maximum(largest, SMALLEST).to(tl.int32, bitcast=True) >> 23) - 127
    x *= ((127 + 14 - exponent) << 23).to(tl.float32, bitcast=True)
    upper = x.to(tl.float16)
    rest = (x - upper.to(tl.float32)).to(tl.float16)
    is_upper = tl.arange(0, COLUMNS) < COLUMNS // 2
    # [len(x), COLUMNS]
    both = tl.where(is_upper[None, :], upper[:, None], rest[:, None])
    sums = tl.sum(product(E, both, tl.float16, "ieee"), axis=1)
    # COLUMNS / 2 copies, 2^RAISED and 2^(14 - exponent)
    return sums * ((127 - 14 - 15 - 2 + exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse(x):
    """Return 1 / x of normal positive numbers, to a few units in the last place."""
    if BY_INTERPRETER:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def row_dual(S, g, valid_i, to_log2):
    """Return f = -LSE_j(S + g) in units of log 2, -inf where not valid or where no key is."""
    X = fma_bias(S, to_log2, g[None, :])
    highest = tl.max(X, axis=1)
    some = valid_i & (highest > float("-inf"))
    highest = tl.where(some, highest, 0.0)
    total = tl.where(some, tl.sum(tl.exp2(X - highest[:, None]), axis=1), 1.0)
    return tl.where(some, -highest - tl.log2(total), float("-inf"))


# fmt: off
@triton.jit
def updated(
    f, g, w, u, q, k, q_n, k_n, i, j, valid_i, valid_j, num_updates, to_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Return f and g after further updates, each of g and then f.

    Rows of exp(S + f + g) sum to 1, and an update makes the sums of its columns, weighted by w_i,
    u_j. Tokens `i` and `j` are rows of `q` and `k`. E is computed again from the duals once a
    scaling is beyond FAR; one below 1 / FAR needs a larger one of the other side: E is at most 1.
    """
    heaviest = tl.max(w)
    while num_updates > 0:
        # [len(i), BLOCK_D]
        q_tile = load_tile(q, i, valid_i, q_n, D, BLOCK_D)
        # [len(j), BLOCK_D]
        k_tile = load_tile(k, j, valid_j, k_n, D, BLOCK_D)
        # [len(i), len(j)]
        S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
        E = half_plan(S, to_log2, g[None, :], f[:, None])
        E_t = tl.trans(E)
        a = tl.where(valid_i, 1.0, 0.0)
        b = tl.where(valid_j, 1.0, 0.0)
        largest_a = heaviest
        near = num_updates > 0
        while near:
            b = tl.where(valid_j, u * inverse(plan_times(E_t, w * a, largest_a)), 0.0)
            largest_b = tl.max(b)
            a = tl.where(valid_i, inverse(plan_times(E, b, largest_b)), 0.0)
            largest_a = tl.max(w * a)
            num_updates -= 1
            near = (num_updates > 0) & (largest_b < FAR) & (largest_a < FAR * heaviest)
        f += log2_scaling(a, valid_i)
        g += log2_scaling(b, valid_j)
    return f, g
