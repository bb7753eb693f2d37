"""Sliced potentials and the row dual made of them, fused: project, sort, sum up, undo the sort.

Forward only. The mathematics is that of `reference.potentials` and `reference.asap`. One launch
projects all tokens on all slices; a second sorts a head's projections, sums up the potentials,
undoes the sort and weighs them; where the slices of a head are too many for one program, a third
adds the programs' shares. Beyond `SORTED_TOKENS` tokens `torch.sort` does the second part. Stored
are a few floats per token and slice, nothing of size n x m.

What is sorted are integers: a projection, mapped so that the order stays, with its token's index
in the low bits. 64 bits hold a whole float32. For 16-bit inputs there are 32, of which the index
takes ceil(log2 n) off the projection's end: a relative error of at most 4e-6 at n = 64, 6e-5 at
1024.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asap_exp.ops.reference._masking import blank, centre, effective_padding
from asap_exp.ops.triton.sorting import exchange, log2, sort_rows
from asap_exp.ops.triton.tiles import (
    INTERPRETED,
    block,
    load_tile,
    mask_bytes,
    product,
    unit_stride,
    valid_tokens,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

SORTED_TOKENS = 4096
"""Up to so many tokens one program sorts a slice."""

PROGRAM_BYTES = 8 * 1024
"""What one program sorts at a time; a single slice may be more."""

THREAD_BYTES = 64
"""What one thread holds of it."""

PROJECTED_TOKENS = 64
"""So many tokens are projected by one program."""

FUSED_TOKENS = 256
"""Up to so many tokens one program projects and sorts a head, if all its slices fit."""

FUSED_BLOCK = 32
"""So many tokens it projects at a time."""

FUSED_STAGES = 1
"""How many loads it has in flight."""

LARGEST = tl.constexpr(2**31 - 1)


def supports(q: Tensor, k: Tensor) -> bool:
    """Whether the functions below take these inputs: self-attention, at most float32."""
    return q.shape == k.shape and q.dtype == k.dtype and q.dtype in DTYPES


def sliced_potentials(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Exact 1-D Kantorovich potentials of the queries, centred, `[B, H, L, N]` float32.

    q, k `[B, H, N, D]`, theta `[H, L, D]`, key_padding_mask `[B, N]`, True = padded. No gradient.
    Source of the formula: `asap_exp.ops.reference.potentials`.
    """
    return _sliced_potentials(q, k, theta, key_padding_mask, scale / eps)


def sliced_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """f_hat = sum_l weight_l phi_l + query_weight . [q ; |q|^2], centred, `[B, H, N]` float32.

    weight `[H, L]`, query_weight `[H, D + 1]`, the others as in `sliced_potentials`. No gradient.
    Source of the formula: `asap_exp.ops.reference.asap`.
    """
    return _sliced_dual(q, k, theta, weight, query_weight, key_padding_mask, scale / eps)


@torch.library.custom_op("asap_exp::sliced_potentials", mutates_args=())
def _sliced_potentials(
    q: Tensor, k: Tensor, theta: Tensor, padding: Tensor | None, slope: float
) -> Tensor:
    with torch.cuda.device_of(q):
        projections, _ = _project(q, k, theta, None, padding, slope)
        return _potentials(projections, padding, q.dtype)


@_sliced_potentials.register_fake
def _(q: Tensor, k: Tensor, theta: Tensor, padding: Tensor | None, slope: float) -> Tensor:
    batch, heads, n, _ = q.shape
    return q.new_empty(batch, heads, theta.shape[1], n, dtype=torch.float32)


@torch.library.custom_op("asap_exp::sliced_dual", mutates_args=())
def _sliced_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> Tensor:
    with torch.cuda.device_of(q):
        if _fits_one_program(q, theta):
            return _dual_of_heads(q, k, theta, weight, query_weight, padding, slope)
        projections, f_hat = _project(q, k, theta, query_weight, padding, slope)
        if projections.shape[-1] <= SORTED_TOKENS:
            _weighted_potentials(projections, padding, q.dtype, weight.contiguous(), f_hat)
            return f_hat
        phi = _potentials_by_torch(projections, padding)
    f_hat += torch.einsum("hl,bhln->bhn", weight.float(), phi)
    return centre(f_hat, effective_padding(padding))


@_sliced_dual.register_fake
def _(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def _fits_one_program(q: Tensor, theta: Tensor) -> bool:
    """Whether one program projects and sorts all slices of a head."""
    n, slices = q.shape[2], theta.shape[1]
    return n <= FUSED_TOKENS and _slices_together(slices, n, q.dtype) >= slices


def _dual_of_heads(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> Tensor:
    batch, heads, n, width = q.shape
    slices = theta.shape[1]
    f_hat = q.new_empty(batch, heads, n, dtype=torch.float32)
    if f_hat.numel() == 0:
        return f_hat
    projections = q.new_empty(batch, heads, 2, slices, n, dtype=torch.float32)
    q, k, theta = unit_stride(q), unit_stride(k), theta.contiguous()
    query_weight = None if query_weight is None else query_weight.contiguous()
    dual_kernel[(batch * heads,)](
        q, k, theta, weight.contiguous(), query_weight, mask_bytes(padding), projections, f_hat,
        *q.stride()[:3], *k.stride()[:3], heads, n, slices, slope,
        D=width, BLOCK_D=block(width), TOKENS=FUSED_BLOCK, **projection(slices, q.dtype),
        **_held(_slices_together(slices, n, q.dtype), n, q.dtype),
        HAS_PADDING=padding is not None, HAS_QUERY_WEIGHT=query_weight is not None,
        num_stages=FUSED_STAGES,
    )  # fmt: skip
    return f_hat


def _held(together: int, n: int, dtype: torch.dtype) -> dict[str, object]:
    """The constants of `sort_slices` for so many slices, and the warps of a program."""
    size = block(n)
    held = min(THREAD_BYTES // _word_bytes(dtype), size // 8)
    return {
        "TOGETHER": together,
        "SIZE": size,
        "HELD": held,
        "WIDE": dtype == torch.float32,
        "num_warps": max(1, together * size // held // 32),
    }


def _project(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    query_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """<q, theta_l> and slope <k, theta_l> `[B, H, 2, L, N]`; query_weight . [q ; |q|^2], or 0."""
    batch, heads, n, width = q.shape
    slices = theta.shape[1]
    projections = q.new_empty(batch, heads, 2, slices, n, dtype=torch.float32)
    linear = q.new_empty(batch, heads, n, dtype=torch.float32)
    if linear.numel() == 0:
        return projections, linear
    q, k, theta = unit_stride(q), unit_stride(k), theta.contiguous()
    query_weight = None if query_weight is None else query_weight.contiguous()
    project_kernel[(batch * heads, triton.cdiv(n, PROJECTED_TOKENS))](
        q, k, theta, query_weight, mask_bytes(padding), projections, linear,
        *q.stride()[:3], *k.stride()[:3], heads, n, slices, slope,
        D=width, BLOCK_D=block(width), BLOCK_N=PROJECTED_TOKENS, **projection(slices, q.dtype),
        HAS_PADDING=padding is not None, HAS_QUERY_WEIGHT=query_weight is not None,
        num_warps=4,
    )  # fmt: skip
    return projections, linear


def projection(slices: int, dtype: torch.dtype) -> dict[str, object]:
    """The constants of `project`: theta is float32 whatever q is, so it has more than one term.

    With bfloat16 inputs, which are exact in one, these are one below the other in one product. Else
    the product splits both itself; a second term of 0 then fills it up to the 16 rows it needs.
    """
    padded = block(slices, 8)
    exact = INTERPRETED or dtype == torch.float32
    return {
        "SLICES": padded,
        "TERMS": 2 if dtype == torch.bfloat16 or padded == 8 else 1,
        "THETA_OPERAND": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        "THETA_PRECISION": "ieee" if exact or dtype == torch.bfloat16 else "bf16x3",
    }


def _potentials(projections: Tensor, padding: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Centred phi `[B, H, L, N]`."""
    if projections.shape[-1] > SORTED_TOKENS:
        return _potentials_by_torch(projections, padding)
    phi = torch.empty_like(projections[:, :, 0])
    _sort(projections, padding, dtype, phi, None, None)
    return phi


def _weighted_potentials(
    projections: Tensor,
    padding: Tensor | None,
    dtype: torch.dtype,
    weight: Tensor,
    f_hat: Tensor,
) -> None:
    """Adds the weighted sum of the potentials to `f_hat` and centres it."""
    batch, heads, _, slices, n = projections.shape
    groups = triton.cdiv(slices, _slices_together(slices, n, dtype))
    alone = groups == 1
    shares = f_hat if alone else projections.new_empty(batch, heads, groups, n)
    _sort(projections, padding, dtype, projections[:, :, 0], weight, shares)
    if not alone and f_hat.numel():
        sum_kernel[(batch * heads,)](
            shares, mask_bytes(padding), f_hat, heads, n, groups,
            BLOCK_N=block(n), HAS_PADDING=padding is not None,
            num_warps=min(max(1, block(n) // 256), 8),
        )  # fmt: skip


def _sort(
    projections: Tensor,
    padding: Tensor | None,
    dtype: torch.dtype,
    phi: Tensor,
    weight: Tensor | None,
    shares: Tensor | None,
) -> None:
    """Writes `phi`; with a weight also each program's share of the weighted sum.

    Where one program has all slices of a head, it adds the sum to `shares`, then f_hat, centred.
    `phi` may be where the projections of the queries are.
    """
    batch, heads, _, slices, n = projections.shape
    if phi.numel() == 0:
        return
    together = _slices_together(slices, n, dtype)
    potential_kernel[(batch * heads, triton.cdiv(slices, together))](
        projections, mask_bytes(padding), weight, phi, shares,
        phi.stride(1), heads, n, slices,
        **_held(together, n, dtype),
        HAS_PADDING=padding is not None, HAS_WEIGHT=weight is not None, ALONE=together >= slices,
    )  # fmt: skip


def _slices_together(slices: int, n: int, dtype: torch.dtype) -> int:
    """How many slices of a head, a power of two, one program sorts."""
    fit = PROGRAM_BYTES // (_word_bytes(dtype) * block(n))
    return min(triton.next_power_of_2(slices), max(1, fit))


def _word_bytes(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float32 else 4


def _potentials_by_torch(projections: Tensor, padding: Tensor | None) -> Tensor:
    x, y = projections.unbind(2)
    padding = effective_padding(padding)
    if padding is not None:
        x, y = (z.masked_fill(padding[:, None, None, :], torch.inf) for z in (x, y))
    x, order = x.sort(dim=-1)
    y = y.sort(dim=-1).values
    steps = (y[..., :-1] + y[..., 1:]) * x.diff(dim=-1) / -2
    if padding is not None:
        last = (~padding).sum(dim=-1)[:, None, None, None] - 1
        steps = steps.masked_fill(torch.arange(steps.shape[-1], device=x.device) >= last, 0.0)
    phi = torch.nn.functional.pad(steps.cumsum(dim=-1), (1, 0))
    phi = torch.empty_like(phi).scatter_(-1, order, phi)
    return centre(blank(phi, padding, 3), padding)


# fmt: off
@triton.jit
def load_directions(
    theta, slices,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr, TERMS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    # fmt: on
    """theta rounded to OPERAND, below it what the rounding left, `[TERMS * SLICES, BLOCK_D]`."""
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
    """<theta_l, tile_i>, `[SLICES, tokens]`."""
    terms = product(directions, tl.trans(tile), directions.dtype, PRECISION)
    return tl.sum(tl.reshape(terms, [TERMS, SLICES, tile.shape[0]]), 0)


@triton.jit
def query_features(q_tile, query_weight, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """query_weight . [q ; |q|^2], `[tokens]`."""
    d = tl.arange(0, BLOCK_D)
    u = tl.load(query_weight + d, mask=d < D, other=0.0).to(tl.float32)
    u_square = tl.load(query_weight + D).to(tl.float32)
    q_tile = q_tile.to(tl.float32)
    return tl.sum(q_tile * (u[None, :] + u_square * q_tile), axis=1)


# fmt: off
@triton.jit
def project_tokens(
    first, head, q, k, theta, query_weight, padding, projections, linear,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, slices, slope,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr, TERMS: tl.constexpr,
    THETA_OPERAND: tl.constexpr, THETA_PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_QUERY_WEIGHT: tl.constexpr,
):
    # fmt: on
    """A block of tokens of a head on all slices; the products of padded tokens are 0."""
    b, h = head // heads, head % heads
    i = first + tl.arange(0, BLOCK_N)
    valid = valid_tokens(padding, b, i, n, HAS_PADDING)
    q_tile = load_tile(q + b * q_b + h * q_h, i.to(tl.int64), valid, q_n, D, BLOCK_D)
    k_tile = load_tile(k + b * k_b + h * k_h, i.to(tl.int64), valid, k_n, D, BLOCK_D)
    theta += h * slices * D
    directions = load_directions(theta, slices, D, BLOCK_D, SLICES, TERMS, THETA_OPERAND)
    x = project(directions, q_tile, SLICES, TERMS, THETA_PRECISION)
    y = project(directions, k_tile, SLICES, TERMS, THETA_PRECISION) * slope

    s = tl.arange(0, SLICES)
    target = projections + (head * 2 * slices + s)[:, None] * n + i[None, :]
    inside = (s < slices)[:, None] & (i < n)[None, :]
    tl.store(target, x, mask=inside)
    tl.store(target + slices * n, y, mask=inside)
    features = tl.zeros([BLOCK_N], tl.float32)
    if HAS_QUERY_WEIGHT:
        features += query_features(q_tile, query_weight + h * (D + 1), D, BLOCK_D)
    tl.store(linear + head * n + i, features, mask=i < n)


# fmt: off
@triton.jit
def project_kernel(
    q, k, theta, query_weight, padding, projections, linear,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, slices, slope,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr, TERMS: tl.constexpr,
    THETA_OPERAND: tl.constexpr, THETA_PRECISION: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_QUERY_WEIGHT: tl.constexpr,
):
    """One program a block of tokens of a head."""
    project_tokens(
        tl.program_id(1) * BLOCK_N, tl.program_id(0).to(tl.int64),
        q, k, theta, query_weight, padding, projections, linear,
        q_b, q_h, q_n, k_b, k_h, k_n, heads, n, slices, slope,
        D, BLOCK_D, BLOCK_N, SLICES, TERMS, THETA_OPERAND, THETA_PRECISION,
        HAS_PADDING, HAS_QUERY_WEIGHT,
    )
# fmt: on


@triton.jit
def flip_order(bits):
    """Between the bits of a float32 and an integer that sorts like it; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def sort_images(values, valid):
    """int32 in the order of float32 `values`; invalid ones last."""
    return tl.where(valid, flip_order(values.to(tl.int32, bitcast=True)), LARGEST)


@triton.jit
def sort_words(values, index, valid, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Distinct integers in the order of `values`, the index in the low bits; invalid ones last."""
    image = sort_images(values, valid)
    return ((image.to(tl.int64) << 32) | index) if WIDE else ((image & -SIZE) | index)


@triton.jit
def sorted_images(words, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """The images in words, the bits that the index took at half their range."""
    return (words >> 32).to(tl.int32) if WIDE else ((words & -SIZE) | (SIZE // 2))


@triton.jit
def image_values(images):
    """What `sort_images` was given."""
    return flip_order(images).to(tl.float32, bitcast=True)


# Sorted rows are `[rows, 2, 2, ...]`: a thread has the pairs along the last axes, which are split off
# one by one until a value a thread is left.


@triton.jit
def exchange_floats(values, axis: tl.constexpr):
    return exchange(values.to(tl.int32, bitcast=True), axis).to(tl.float32, bitcast=True)


@triton.jit
def before(values, run, HELD: tl.constexpr):
    """Each value's predecessor in its row; anything at the first."""
    if HELD > 1:
        even, odd = tl.split(values)
        return tl.join(before(odd, run, HELD // 2), even)
    else:
        found = values
        for bit in tl.static_range(len(values.shape) - 1):
            values = exchange_floats(values, len(values.shape) - 1 - bit)
            found = tl.where((run & -run) == 2**bit, values, found)
        return found


@triton.jit
def sums_before(values, run, HELD: tl.constexpr):
    """The sum of all values before each in its row."""
    if HELD > 1:
        even, odd = tl.split(values)
        sums = sums_before(even + odd, run, HELD // 2)
        return tl.join(sums, sums + even)
    else:
        sums = tl.zeros_like(values)
        for bit in tl.static_range(len(values.shape) - 1):
            other = exchange_floats(values, len(values.shape) - 1 - bit)
            sums += tl.where((run >> bit) & 1 == 1, other, 0.0)
            values += other
        return sums


@triton.jit
def sorted_potentials(
    x_words, y_images, count, HELD: tl.constexpr, WIDE: tl.constexpr
):
    """Potentials of the sorted queries `[ROWS, SIZE]`, 0 at the first; anything after `count`."""
    ROWS: tl.constexpr = x_words.shape[0]
    SIZE: tl.constexpr = x_words.shape[1]
    PAIRS: tl.constexpr = [ROWS] + [2] * log2(SIZE)
    x = tl.reshape(image_values(sorted_images(x_words, SIZE, WIDE)), PAIRS)
    y = tl.reshape(image_values(y_images), PAIRS)
    place = tl.reshape(tl.arange(0, SIZE), [1] + PAIRS[1:])
    run = tl.reshape(tl.arange(0, SIZE // HELD), [1] + [2] * log2(SIZE // HELD))
    steps = (before(y, run, HELD) + y) * (before(x, run, HELD) - x) * 0.5
    steps = tl.where((place > 0) & (place < count), steps, 0.0)
    return tl.reshape(sums_before(steps, run, HELD) + steps, [ROWS, SIZE])


@triton.jit
def centred(f, valid):
    """f minus its mean over the valid tokens, 0 elsewhere."""
    f = tl.where(valid, f, 0.0)
    count = tl.maximum(tl.sum(valid.to(tl.int32)), 1).to(tl.float32)
    return tl.where(valid, f - tl.sum(f) / count, 0.0)


# Of a vector whose alignment is not known, a thread loads one value in so many as there are threads:
# these are its share of the tile.


@triton.jit
def dealt(vector, ROWS: tl.constexpr, HELD: tl.constexpr):
    """Each thread's HELD values as `sort_rows` wants them, `[ROWS, HELD, threads of a row]`."""
    tile = tl.reshape(vector, [HELD, ROWS, vector.shape[0] // (ROWS * HELD)])
    return tl.permute(tile, (1, 0, 2))


@triton.jit
def undealt(rows, HELD: tl.constexpr):
    """What `sort_rows` returned as a vector that the same threads store."""
    tile = tl.reshape(rows, [rows.shape[0], rows.shape[1] // HELD, HELD])
    return tl.reshape(tl.permute(tile, (2, 0, 1)), [rows.shape[0] * rows.shape[1]])


# fmt: off
@triton.jit
def sort_slices(
    group, head, projections, padding, weight, phi, shares,
    phi_h, heads, n, slices,
    TOGETHER: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr, WIDE: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_WEIGHT: tl.constexpr, ALONE: tl.constexpr,
):
    # fmt: on
    """Some slices of a head; with a weight, their share of the weighted sum as well."""
    b, h = head // heads, head % heads
    first = group * TOGETHER
    THREADS: tl.constexpr = TOGETHER * SIZE // HELD
    place = tl.arange(0, HELD * THREADS)
    row = first + place % THREADS // (SIZE // HELD)
    i = place // THREADS * (SIZE // HELD) + place % (SIZE // HELD)
    inside = (row < slices) & (i < n)
    valid = inside & valid_tokens(padding, b, i, n, HAS_PADDING)
    x_row = projections + head * 2 * slices * n + row * n
    y = tl.load(x_row + slices * n + i, mask=inside, other=0.0)
    y_images = sort_rows(dealt(sort_images(y, valid), TOGETHER, HELD))
    x = tl.load(x_row + i, mask=inside, other=0.0)
    if not WIDE:
        # Only differences of x count: those to some token lose less to the index than x itself.
        x -= tl.load(x_row, mask=row < slices, other=0.0)
    x_words = sort_rows(dealt(sort_words(x, i, valid, SIZE, WIDE), TOGETHER, HELD))
    tl.debug_barrier()  # phi may be where x was

    place = tl.arange(0, SIZE)
    count = n
    if HAS_PADDING:
        count = tl.sum(valid_tokens(padding, b, place, n, HAS_PADDING).to(tl.int32))
    values = sorted_potentials(x_words, y_images, count, HELD, WIDE)
    if not HAS_WEIGHT:
        occupied = place[None, :] < count
        values = tl.where(occupied, values, 0.0)
        share = 1.0 / tl.maximum(count, 1).to(tl.float32)
        values = tl.where(occupied, values - (tl.sum(values, 1) * share)[:, None], 0.0)

    phi += head * phi_h
    token = undealt((x_words & (SIZE - 1)).to(tl.int32), HELD)
    values = undealt(values, HELD)
    tl.store(phi + row * n + token, values, mask=(row < slices) & (token < n))
    if HAS_WEIGHT:
        tl.debug_barrier()  # each token's potentials were written by other threads
        s = first + tl.arange(0, TOGETHER)
        w = tl.load(weight + h * slices + s, mask=s < slices, other=0.0).to(tl.float32)
        inside = (s < slices)[:, None] & (place < n)[None, :]
        values = tl.load(phi + s[:, None] * n + place[None, :], mask=inside, other=0.0)
        shares += (head * tl.cdiv(slices, TOGETHER) + group) * n + place
        f = tl.sum(values * w[:, None], 0)
        if ALONE:
            f += tl.load(shares, mask=place < n, other=0.0)
            f = centred(f, valid_tokens(padding, b, place, n, HAS_PADDING))
        tl.store(shares, f, mask=place < n)


# fmt: off
@triton.jit(do_not_specialize=["n"])
def potential_kernel(
    projections, padding, weight, phi, shares,
    phi_h, heads, n, slices,
    TOGETHER: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr, WIDE: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_WEIGHT: tl.constexpr, ALONE: tl.constexpr,
):
    """One program a few slices of a head."""
    sort_slices(
        tl.program_id(1), tl.program_id(0).to(tl.int64), projections, padding, weight, phi, shares,
        phi_h, heads, n, slices, TOGETHER, SIZE, HELD, WIDE, HAS_PADDING, HAS_WEIGHT, ALONE,
    )


@triton.jit(do_not_specialize=["n"])
def dual_kernel(
    q, k, theta, weight, query_weight, padding, projections, f_hat,
    q_b, q_h, q_n, k_b, k_h, k_n,
    heads, n, slices, slope,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
    SLICES: tl.constexpr, TERMS: tl.constexpr,
    THETA_OPERAND: tl.constexpr, THETA_PRECISION: tl.constexpr,
    TOGETHER: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr, WIDE: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_QUERY_WEIGHT: tl.constexpr,
):
    """One program a head, from the projections to f_hat."""
    head = tl.program_id(0).to(tl.int64)
    for first in tl.range(0, n, TOKENS):
        project_tokens(
            first, head, q, k, theta, query_weight, padding, projections, f_hat,
            q_b, q_h, q_n, k_b, k_h, k_n, heads, n, slices, slope,
            D, BLOCK_D, TOKENS, SLICES, TERMS, THETA_OPERAND, THETA_PRECISION,
            HAS_PADDING, HAS_QUERY_WEIGHT,
        )
    tl.debug_barrier()  # what other threads projected
    sort_slices(
        0, head, projections, padding, weight, projections, f_hat,
        2 * slices * n, heads, n, slices, TOGETHER, SIZE, HELD, WIDE, HAS_PADDING, True, True,
    )
# fmt: on


@triton.jit
def sum_kernel(
    shares, padding, f_hat, heads, n, groups, BLOCK_N: tl.constexpr, HAS_PADDING: tl.constexpr
):
    """f_hat + the sum of the programs' shares, centred over the valid tokens of a head."""
    head = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_N)
    valid = valid_tokens(padding, head // heads, i, n, HAS_PADDING)
    f_hat += head * n + i
    f = tl.load(f_hat, mask=valid, other=0.0)
    for group in range(groups):
        f += tl.load(shares + (head * groups + group) * n + i, mask=valid, other=0.0)
    tl.store(f_hat, centred(f, valid), mask=i < n)

