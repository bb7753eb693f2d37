"""ASAP of a short sequence in one launch, from projection to output. No gradient.

There is one program per head. The mathematics is that of `dual` and of
`sinkhorn.logits_in_registers`. Only the output of a head is stored: the projections are sorted in
the registers where the matrix units leave them, and a second sort returns the potentials to their
tokens. f_hat is not centred, since a constant added to a dual does not change its closure. Limits:
`TOKENS`, `SLICES`. Many refined heads without logit features use separate launches for the dual and
the updates instead.

Letters: see `kernels.tiles`; SLICES is the number of slices padded to a tile. SORT_64: sorted words
have 64 bits. NO_TAIL: all tokens are valid and fill their tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.asap import dual, projection
from asap_exp.ops.kernels.asap.adaptive_features import (
    adaptive_weights_of_both,
    centred_rows,
    pooled,
)
from asap_exp.ops.kernels.asap.logit_features import logit_features_in_registers
from asap_exp.ops.kernels.asap.projection import (
    load_directions,
    load_query_weight,
    project,
    query_features,
)
from asap_exp.ops.kernels.asap.sorted_rows import (
    image_values,
    potentials_of,
    predecessors,
    sort_images,
    sort_words,
    sorted_images,
    sorted_potentials,
)
from asap_exp.ops.kernels.asap.sorting import log2, sort_product, sort_rows
from asap_exp.ops.kernels.launch import Launch, strides, unwritten_output
from asap_exp.ops.kernels.sinkhorn.logits_in_registers import plan, relaxed_update
from asap_exp.ops.kernels.tiles import (
    EVERY_LAUNCH,
    LOG2_E,
    block,
    concat_rows,
    load_tile,
    product,
    split_rows,
    store_tile,
    valid_tokens,
)
from asap_exp.ops.products import AS_ALLOWED
from asap_exp.ops.reference.logit_rows import COUNT
from asap_exp.ops.routing import choose
from asap_exp.ops.sliced_map import SlicedMap

TOKENS = 64
"""Maximum number of tokens: at 128, registers spill and separate launches are faster."""

SLICES = 16
"""Maximum number of slices."""

UNIT = tl.constexpr(LOG2_E)
LOGIT_FEATURES = tl.constexpr(COUNT)


def refusal(call: Call) -> str | None:
    """Return why this kernel does not take the call, or None if it does."""
    if call.n > TOKENS:
        return f"takes up to {TOKENS} tokens, got {call.n}"
    if call.slices > SLICES:
        return f"takes up to {SLICES} slices, got {call.slices}"
    if call.one_pass:
        return "computes the closure, and the map is of one pass"
    if call.other_features:
        return f"does not compute the features of {', '.join(call.other_features)}"
    return dual.self_attention_alone(call)


def slower(call: Call) -> str | None:
    """Return why separate launches are faster, or None if they are not."""
    if call.refine > 0 and not call.one_wave and not call.logit_features:
        return "with many heads, a program has one warp and no room for refining updates"
    return None


def one_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    map: SlicedMap,
    *,
    refine: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    products: str = AS_ALLOWED,
) -> Tensor:
    """Compute the closure of f_hat after `refine` updates, `[B, H, N, width of v]`.

    q, k `[B, H, N, D]`, v `[B, H, N, width]`, key_padding_mask `[B, N]`, True = padded. No
    gradient. Source of the formula: `asap_exp.ops.reference.asap`.
    """
    weights = (map.theta, map.weight, map.query_weight, map.adaptive_weight, map.logit_weight)
    relaxation = map.relaxation if refine else None
    return _asap(q, k, v, *weights, relaxation, key_padding_mask, refine, scale / eps, products)


@torch.library.custom_op("asap_exp::asap", mutates_args=())
def _asap(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    relaxation: Tensor | None,
    padding: Tensor | None,
    refine: int,
    slope: float,
    products: str,
) -> Tensor:
    map = SlicedMap(
        theta,
        weight,
        query_weight=query_weight,
        adaptive_weight=adaptive_weight,
        logit_weight=logit_weight,
        relaxation=relaxation,
    )
    p = Launch.of(q, k, v, padding, refine + 1, slope, products)
    features = logit_weight is not None
    call = p.call(slices=theta.shape[1], refine=refine, logit_features=features)
    return choose("short_asap", call).launch(p, map, padding)


@_asap.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return unwritten_output(q, v)


def _warps(p: Launch, *, one: bool) -> int:
    """Return the warps per program.

    For many heads, these are the fewest that hardly spill, since fewer warps exchange less; few
    heads get more.
    """
    if torch.float32 in (p.q.dtype, p.v.dtype):
        return block(p.n) // 8
    if one and max(p.q.shape[3], p.v.shape[3]) <= 64:
        return 1
    return block(p.n) // 16


# In the result of `sort_rows`, the lowest position bits are in a thread's registers.
@triton.jit
def sort_again(words, ROWS: tl.constexpr, SIZE: tl.constexpr, WARPS: tl.constexpr):
    """Sort the rows of integers `[ROWS, SIZE]` in the layout of a result of `sort_product`."""
    tile = tl.reshape(words, [ROWS, WARPS * 4, SIZE // (4 * WARPS)])
    return sort_rows(tl.permute(tile, (0, 2, 1)))


@triton.jit
def by_token(
    values,
    token,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    SORT_64: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Return `values` `[ROWS, SIZE]`, each moved to the position of its token.

    Tokens are sorted with the values in the low bits: all bits of a value or, in words of 32 bits,
    as many upper bits as `sort_words` leaves to a projection.
    """
    bits = values.to(tl.int32, bitcast=True)
    TAKEN: tl.constexpr = log2(SIZE)
    KEPT: tl.constexpr = 32 - TAKEN
    if SORT_64:
        words = (token.to(tl.int64) << 32) | (bits.to(tl.int64) & 0xFFFFFFFF)
        bits = sort_again(words, ROWS, SIZE, WARPS).to(tl.int32)
    else:
        upper = ((bits + SIZE // 2) >> TAKEN) & (2**KEPT - 1)
        words = ((token - SIZE // 2) << KEPT) | upper
        bits = sort_again(words, ROWS, SIZE, WARPS) << TAKEN
    return bits.to(tl.float32, bitcast=True)


# fmt: off
@triton.jit
def sliced_sum(
    x, y, centred, w, exists, count,
    ROWS: tl.constexpr, SIZE: tl.constexpr, SORT_64: tl.constexpr, WARPS: tl.constexpr,
):
    # fmt: on
    """Compute sum_l w_l phi_l up to a constant, `[SIZE]`, from projections `[ROWS, SIZE]`.

    `centred` holds x above y, each minus its mean; `exists` is `[1, SIZE]`.
    """
    index = tl.arange(0, SIZE)[None, :]
    PER_THREAD: tl.constexpr = SIZE // (4 * WARPS)
    if SORT_64:
        # [ROWS, SIZE]
        y_images = sort_product(sort_images(y, exists), ROWS, SIZE, WARPS)
        x_words = sort_product(sort_words(x, index, exists, SIZE, SORT_64), ROWS, SIZE, WARPS)
        # [ROWS, SIZE]
        phi = sorted_potentials(x_words, y_images, count, PER_THREAD, SORT_64)
    else:
        # Only differences of x matter; relative to the mean, x loses less precision to the index.
        x, _ = split_rows(centred)
        # [2 ROWS, SIZE]
        words = concat_rows(sort_words(x, index, exists, SIZE, SORT_64), sort_images(y, exists))
        words = sort_product(words, 2 * ROWS, SIZE, WARPS)
        x_words, y_images = split_rows(words)
        x, y = image_values(sorted_images(x_words, SIZE, SORT_64)), image_values(y_images)
        x_before, y_before = split_rows(predecessors(concat_rows(x, y), PER_THREAD))
        phi = potentials_of(x, x_before, y, y_before, count, PER_THREAD)
    phi = by_token(phi, (x_words & (SIZE - 1)).to(tl.int32), ROWS, SIZE, SORT_64, WARPS)
    return tl.sum(phi * w[:, None], 0)


# fmt: off
@triton.jit
def asap_kernel(
    q, k, v, theta, weight, query_weight, adaptive_weight, logit_weight, relaxation, padding, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    heads, n, slices, num_iters, to_log2, log2_ratio,
    D: tl.constexpr, V_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, V_OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    SLICES: tl.constexpr, TERMS: tl.constexpr,
    THETA_OPERAND: tl.constexpr, THETA_PRECISION: tl.constexpr, SORT_64: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_QUERY_WEIGHT: tl.constexpr, ADAPTIVE: tl.constexpr,
    HAS_LOGIT_WEIGHT: tl.constexpr, RELAXED: tl.constexpr,
    NO_TAIL: tl.constexpr, WARPS: tl.constexpr,
):
    # fmt: on
    """Compute the output of a head; one program per head, duals in units of log 2."""
    head = tl.program_id(0).to(tl.int64)
    sample, h = head // heads, head % heads
    i = tl.arange(0, BLOCK_N)
    valid = valid_tokens(padding, sample, i, n, HAS_PADDING)
    count = tl.cast(n, tl.int32)
    if HAS_PADDING:
        count = tl.sum(valid.to(tl.int32))
    q += sample * q_b + h * q_h
    k += sample * k_b + h * k_h
    # [BLOCK_N, BLOCK_D]
    q_tile = load_tile(q, i, valid, q_n, D, BLOCK_D)
    k_tile = load_tile(k, i, valid, k_n, D, BLOCK_D)
    theta += h * slices * D
    # [TERMS * SLICES, BLOCK_D]
    directions = load_directions(theta, slices, D, BLOCK_D, SLICES, TERMS, THETA_OPERAND)
    # [SLICES, BLOCK_N]
    x = project(directions, q_tile, SLICES, TERMS, THETA_PRECISION)
    y = project(directions, k_tile, SLICES, TERMS, THETA_PRECISION) * to_log2
    s = tl.arange(0, SLICES)
    w = tl.load(weight + h * slices + s, mask=s < slices, other=0.0).to(tl.float32)
    u, u_square = tl.zeros([BLOCK_D], tl.float32), 0.0
    if HAS_QUERY_WEIGHT:
        u, u_square = load_query_weight(query_weight + h * (D + 1), D, BLOCK_D)
    exists = valid[None, :]
    inverse_count = 1.0 / tl.maximum(count, 1).to(tl.float32)
    # [2 SLICES, BLOCK_N]
    centred = centred_rows(concat_rows(x, y), exists, inverse_count)
    if ADAPTIVE:
        more, keys, queries = adaptive_weights_of_both(
            centred, adaptive_weight, h, exists, inverse_count, slices, SLICES
        )
        w += more * UNIT  # phi is in units of log 2, but so is one of its spreads
        sums = pooled(k_tile, keys, 0.0, THETA_OPERAND, THETA_PRECISION)
        u += tl.sum(sums + pooled(q_tile, queries, 0.0, THETA_OPERAND, THETA_PRECISION), 0)
    linear = tl.zeros([BLOCK_N], tl.float32)
    if HAS_QUERY_WEIGHT or ADAPTIVE:
        linear = query_features(q_tile, u, u_square) * UNIT
    # [BLOCK_N]
    f = sliced_sum(x, y, centred, w, exists, count, SLICES, BLOCK_N, SORT_64, WARPS) + linear
    # [BLOCK_N, BLOCK_N]
    S = product(q_tile, tl.trans(k_tile), OPERAND, PRECISION)
    if HAS_LOGIT_WEIGHT:
        sign = tl.where(to_log2 > 0, 1.0, tl.where(to_log2 < 0, -1.0, 0.0))
        weight_of_head = logit_weight + h * LOGIT_FEATURES
        chi = logit_features_in_registers(S, weight_of_head, sign, valid, inverse_count, NO_TAIL)
        f += chi * UNIT
    f = tl.where(valid, f, float("-inf"))
    if RELAXED:
        w = tl.load(relaxation + h).to(tl.float32)
        for _ in range(1, num_iters):
            f = relaxed_update(S, f, w, valid, valid, to_log2, log2_ratio)
        num_iters = 1  # the closure: no code is generated for updates on scalings
    # [BLOCK_N, BLOCK_N]
    A = plan(
        S, f, q, k, q_n, k_n, i, i, valid, valid, None, None,
        n, n, num_iters, to_log2, log2_ratio, 1.0, D, BLOCK_D, OPERAND, PRECISION, False, False,
    )
    # [BLOCK_N, BLOCK_V]
    v_tile = load_tile(v + sample * v_b + h * v_h, i, valid, v_n, V_WIDTH, BLOCK_V)
    values = product(A, v_tile, V_OPERAND, PRECISION)
    store_tile(out + sample * out_b + h * out_h, i, i < n, out_n, values, V_WIDTH, BLOCK_V)


def launch(p: Launch, map: SlicedMap, padding: Tensor | None) -> Tensor:
    """Run the whole operator in one launch; `padding` is the mask whose bytes are in `p`."""
    out = unwritten_output(p.q, p.v)
    if out.numel() == 0:
        return out
    slices = map.theta.shape[1]
    warps = _warps(p, one=not p.one_wave and map.logit_weight is None)
    map = map.map(torch.Tensor.contiguous)
    with torch.cuda.device_of(p.q):
        asap_kernel[(p.programs,)](
            p.q, p.k, p.v, map.theta, map.weight, map.query_weight, map.adaptive_weight,
            map.logit_weight, map.relaxation, p.padding, out,
            *strides(p.q, p.k, p.v, out),
            p.heads, p.n, slices, p.num_iters, p.to_log2, p.log2_ratio,
            **p.values, **projection.constants(slices, p.q.dtype), BLOCK_N=block(p.n),
            SORT_64=p.q.dtype == torch.float32, HAS_QUERY_WEIGHT=map.query_weight is not None,
            ADAPTIVE=map.adaptive_weight is not None,
            HAS_LOGIT_WEIGHT=map.logit_weight is not None, RELAXED=map.relaxation is not None,
            NO_TAIL=p.padding is None and p.n == block(p.n),
            WARPS=warps, num_warps=warps, **EVERY_LAUNCH,
        )  # fmt: skip
    return out
