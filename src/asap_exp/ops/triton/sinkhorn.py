"""Finite-T Sinkhorn attention as one custom operator with a gradient, for the teacher and closures.

Where a head's logits fit on chip one launch does all (`short`); where its keys do, one launch does
all updates (`resident`); else, and for the gradient, there are passes over tiles (`streaming`).
Kept are the duals of every update, O((n + m) T) numbers, and nothing of size n x m.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from asap_exp.ops.triton import resident, short, streaming
from asap_exp.ops.triton.tiles import LOG2_E, block, operand, unit_stride

ON_CHIP_TOKENS = 128
"""Up to so many tokens on either side, a head's logits stay on chip."""

RESIDENT_KEYS = 512
"""Up to so many keys, a head's keys stay on chip: beyond, two passes an update are as fast."""


RANK_PRECISION = {torch.float32: "ieee", torch.float16: "tf32x3", torch.bfloat16: "tf32"}
"""Of the products that sum the updates' share of the gradient: finer than the inputs' own."""


class Solution(NamedTuple):
    """out `[B, H, N, width of v]` and the duals of the updates, in units of log 2.

    `rows` `[B, H, T + 1, N]` are f^0 .. f^T, `cols` `[B, H, T, M]` are g^1 .. g^T; both empty
    (`[B, H, 0, ..]`) where they were not asked for.
    """

    out: Tensor
    rows: Tensor
    cols: Tensor


def sinkhorn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    *,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    keep_duals: bool = False,
) -> Solution:
    """`num_iters` updates from f^0 = `start` (zeros if None), and the plan's product with v.

    Differentiable in q, k, v and `start`; the duals carry no gradient.
    """
    inputs = [x for x in (q, k, v, start) if x is not None]
    save = keep_duals or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))
    if start is not None:
        start = start.float()
    return Solution(*_sinkhorn(q, k, v, start, key_padding_mask, num_iters, scale / eps, save))


@torch.library.custom_op("asap_exp::sinkhorn", mutates_args=())
def _sinkhorn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    padding: Tensor | None,
    num_iters: int,
    slope: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    results = _results(q, k, v, num_iters, save)
    if results[0].numel() == 0:
        return results
    q, k, v = (unit_stride(x) for x in (q, k, v))
    start = None if start is None else start.contiguous()
    padding = None if padding is None else padding.contiguous().view(torch.uint8)
    with torch.cuda.device_of(q):
        if _on_chip(q, k):
            _forward_on_chip(q, k, v, start, padding, *results, num_iters, slope, save)
        else:
            _forward_in_passes(q, k, v, start, padding, *results, num_iters, slope, save)
    return results


@_sinkhorn.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    padding: Tensor | None,
    num_iters: int,
    slope: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(q, k, v, num_iters, save)


def _results(
    q: Tensor, k: Tensor, v: Tensor, num_iters: int, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Unwritten outputs; `out` lies in memory as `[B, N, H, width]`, ready for the projection."""
    batch, heads, n, _ = q.shape
    m, width = v.shape[2:]
    out = v.new_empty(batch, n, heads, width).transpose(1, 2)
    kept = num_iters if save else -1
    rows = q.new_empty(batch, heads, kept + 1, n, dtype=torch.float32)
    cols = q.new_empty(batch, heads, max(kept, 0), m, dtype=torch.float32)
    return out, rows, cols


def _on_chip(q: Tensor, k: Tensor) -> bool:
    return max(q.shape[2], k.shape[2]) <= ON_CHIP_TOKENS


def _forward_on_chip(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    padding: Tensor | None,
    out: Tensor,
    rows: Tensor,
    cols: Tensor,
    num_iters: int,
    slope: float,
    save: bool,
) -> None:
    batch, heads, n, _ = q.shape
    m = k.shape[2]
    short.forward_kernel[(batch * heads,)](
        q, k, v, start, padding, out, rows, cols,
        *_strides(q, k, v, out),
        heads, n, m, num_iters, slope * LOG2_E, math.log2(n / m),
        **_widths(q, v), BLOCK_N=block(n), BLOCK_M=block(m), **_operands(q, v),
        HAS_START=start is not None, HAS_PADDING=padding is not None, SAVE=save,
        num_warps=_warps_on_chip(n, m, backward=False),
    )  # fmt: skip


def _forward_in_passes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    padding: Tensor | None,
    out: Tensor,
    rows: Tensor,
    cols: Tensor,
    num_iters: int,
    slope: float,
    save: bool,
) -> None:
    batch, heads, n, _ = q.shape
    m = k.shape[2]
    if not save:  # room for the duals of one update and the next
        rows = q.new_empty(batch, heads, 2, n, dtype=torch.float32)
        cols = q.new_empty(batch, heads, 2, m, dtype=torch.float32)
    first = None if start is None else torch.mul(start, LOG2_E, out=rows[:, :, 0])
    if save and start is None:
        rows[:, :, 0] = 0.0
    half_step(k, q, first, None, padding, cols[:, :, 0], slope, math.log2(n / m), x_is_query=False)
    row: Tensor | None
    if m <= RESIDENT_KEYS and q.element_size() == 2 and num_iters > 1:
        row, col = _updates_resident(q, k, padding, rows, cols, num_iters, slope, save)
    else:
        row, col = _updates_streaming(q, k, padding, rows, cols, num_iters, slope)
    last = rows[:, :, num_iters % rows.shape[2]]
    n_block, m_block, warps = _tile(q)
    streaming.attention_kernel[(triton.cdiv(n, n_block), batch * heads)](
        q, k, v, col, row, padding, out, last,
        *_strides(q, k, v, out), col.stride(1), rows.stride(1), rows.stride(1),
        heads, n, m, slope * LOG2_E,
        **_widths(q, v), BLOCK_N=n_block, BLOCK_M=m_block, **_operands(q, v),
        HAS_PREVIOUS=row is not None, HAS_PADDING=padding is not None, SAVE=save,
        num_warps=warps,
    )  # fmt: skip


def _updates_resident(
    q: Tensor,
    k: Tensor,
    padding: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    num_iters: int,
    slope: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """f^(T-1) and g^T from f^0 and g^1, T > 1."""
    batch, heads, n, d = q.shape
    m = k.shape[2]
    queries, warps = _resident_tile(m)
    resident.updates_kernel[(batch * heads,)](
        q, k, rows, cols, padding,
        *_strides(q, k), *rows.stride()[1:3], *cols.stride()[1:3],
        heads, n, m, num_iters, slope * LOG2_E, math.log2(n / m),
        D=d, BLOCK_N=queries, BLOCK_M=block(m), BLOCK_D=block(d),
        OPERAND=operand(q), PRECISION="ieee",
        HAS_PADDING=padding is not None, SAVE=save, num_warps=warps,
    )  # fmt: skip
    last = num_iters - 1 if save else 0
    return rows[:, :, last], cols[:, :, last]


def _updates_streaming(
    q: Tensor,
    k: Tensor,
    padding: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    num_iters: int,
    slope: float,
) -> tuple[Tensor | None, Tensor]:
    """f^(T-1), None for T = 1, and g^T from f^0 and g^1."""
    ratio = math.log2(q.shape[2] / k.shape[2])
    f: Tensor | None = None
    g = cols[:, :, 0]
    for t in range(1, num_iters):
        f_next, g_next = rows[:, :, t % rows.shape[2]], cols[:, :, t % cols.shape[2]]
        half_step(q, k, g, f, padding, f_next, slope, 0.0, x_is_query=True)
        half_step(k, q, f_next, g, padding, g_next, slope, ratio, x_is_query=False)
        f, g = f_next, g_next
    return f, g


def half_step(
    x: Tensor,
    y: Tensor,
    dual_y: Tensor | None,
    previous: Tensor | None,
    padding: Tensor | None,
    result: Tensor,
    slope: float,
    log2_ratio: float,
    *,
    x_is_query: bool,
) -> None:
    """Writes log2_ratio - LSE_y(S_xy + dual_y) `[B, H, tokens of x]`; all duals in log 2."""
    batch, heads, num_x, _ = x.shape
    x_block, y_block, warps = _tile(x)
    streaming.half_step_kernel[(triton.cdiv(num_x, x_block), batch * heads)](
        x, y, dual_y, previous, padding, result,
        *_strides(x, y),
        *(0 if dual is None else dual.stride(1) for dual in (dual_y, previous, result)),
        heads, num_x, y.shape[2], slope * LOG2_E, log2_ratio,
        D=x.shape[3], BLOCK_X=x_block, BLOCK_Y=y_block, BLOCK_D=block(x.shape[3]),
        OPERAND=operand(x), PRECISION="ieee",
        X_IS_QUERY=x_is_query, HAS_DUAL=dual_y is not None, HAS_PREVIOUS=previous is not None,
        HAS_PADDING=padding is not None, num_warps=warps,
    )  # fmt: skip


@torch.library.custom_op("asap_exp::sinkhorn_backward", mutates_args=())
def _sinkhorn_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    num_iters: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _gradients(q, k, v)
    if grad_out.numel() == 0:
        return grads
    q, k, v, grad_out = (unit_stride(x) for x in (q, k, v, grad_out))
    padding = None if padding is None else padding.contiguous().view(torch.uint8)
    saved = rows, cols
    with torch.cuda.device_of(q):
        if _on_chip(q, k):
            _backward_on_chip(grad_out, q, k, v, padding, *saved, grads, num_iters, slope)
        else:
            _backward_in_passes(grad_out, q, k, v, padding, *saved, grads, num_iters, slope)
    return grads


@_sinkhorn_backward.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    num_iters: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(q, k, v)


def _gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unwritten gradients of q, k, v and f^0."""
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    return grad_q, grad_k, grad_v, q.new_empty(q.shape[:3], dtype=torch.float32)


def _backward_on_chip(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    num_iters: int,
    slope: float,
) -> None:
    batch, heads, n, _ = q.shape
    m = k.shape[2]
    short.backward_kernel[(batch * heads,)](
        q, k, v, grad_out, padding, rows, cols, *grads,
        *_strides(q, k, v, grad_out, *grads[:3]),
        heads, n, m, num_iters, slope * LOG2_E, math.log2(n / m), slope,
        **_widths(q, v), BLOCK_N=block(n), BLOCK_M=block(m), **_operands(q, v),
        HAS_PADDING=padding is not None, num_warps=_warps_on_chip(n, m, backward=True),
    )  # fmt: skip


def _backward_in_passes(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    num_iters: int,
    slope: float,
) -> None:
    batch, heads, n, _ = q.shape
    m = k.shape[2]
    ratio = math.log2(n / m)
    grad_q, grad_k, grad_v, grad_start = grads
    # With a g^0 = g^1 - log2(n / m), A^0 has the form of every other A^t.
    cols = torch.cat([cols[:, :, :1] - ratio, cols], dim=2)
    col_weights = torch.empty_like(cols[:, :, 1:])
    row_weights = torch.empty_like(rows[:, :, 1:])
    grad_col = torch.empty_like(cols[:, :, 0])
    delta = torch.empty_like(rows[:, :, 0])
    x_block, y_block, warps = _gradient_tile(q)
    streaming.delta_kernel[(triton.cdiv(n, x_block), batch * heads)](
        q, k, v, grad_out, rows[:, :, -1], cols[:, :, -1], padding, delta,
        *_strides(q, k, v, grad_out), rows.stride(1), cols.stride(1),
        heads, n, m, slope * LOG2_E,
        **_widths(q, v), BLOCK_N=x_block, BLOCK_M=y_block, **_operands(q, v),
        HAS_PADDING=padding is not None, num_warps=warps,
    )  # fmt: skip
    streaming.value_gradient_kernel[(triton.cdiv(m, x_block), batch * heads)](
        q, k, v, grad_out, delta, rows[:, :, -1], cols[:, :, -1], padding, grad_v, grad_col,
        *_strides(q, k, v, grad_out, grad_v), rows.stride(1), cols.stride(1), grad_col.stride(1),
        heads, n, m, slope * LOG2_E,
        **_widths(q, v), BLOCK_N=y_block, BLOCK_M=x_block, **_operands(q, v),
        HAS_PADDING=padding is not None, num_warps=warps,
    )  # fmt: skip
    change = cols[:, :, -1] - cols[:, :, -2] - ratio
    torch.mul(grad_col, change.exp2_(), out=col_weights[:, :, -1])
    for t in range(num_iters - 1, -1, -1):
        f, g, w = rows[:, :, t], cols[:, :, t], col_weights[:, :, t]
        df = row_weights[:, :, t] if t > 0 else grad_start
        adjoint(q, k, f, g, w, None, padding, df, slope, 0.0, x_is_query=True)
        if t > 0:
            earlier = cols[:, :, t - 1]
            target = col_weights[:, :, t - 1]
            adjoint(k, q, g, f, df, earlier, padding, target, slope, ratio, x_is_query=False)
    row_weights[:, :, 0] = 0.0
    drift = torch.maximum(_drift(rows), _drift(cols))
    query_side = (q, grad_out, rows, row_weights)
    key_side = (k, v, cols, col_weights)
    for x, y, grad in ((query_side, key_side, grad_q), (key_side, query_side, grad_k)):
        num_x, num_y = x[0].shape[2], y[0].shape[2]
        streaming.logit_gradient_kernel[(triton.cdiv(num_x, x_block), batch * heads)](
            x[0], y[0], x[1], y[1], delta, x[2], y[2], x[3], y[3], drift, padding, grad,
            *_strides(x[0], y[0], x[1], y[1], grad),
            heads, num_x, num_y, num_iters, slope * LOG2_E, slope,
            **_widths(q, v), BLOCK_T=block(num_iters),
            BLOCK_X=x_block, BLOCK_Y=y_block, **_operands(q, v),
            RANK_PRECISION=RANK_PRECISION[q.dtype],
            X_IS_QUERY=x is query_side, HAS_PADDING=padding is not None, num_warps=warps,
        )  # fmt: skip


def _drift(duals: Tensor) -> Tensor:
    """By how much a dual differs from the last one, `[B, H]`, in units of log 2."""
    return (duals - duals[:, :, -1:]).abs().amax(dim=(2, 3))


def adjoint(
    x: Tensor,
    y: Tensor,
    dual_x: Tensor,
    dual_y: Tensor,
    weight_y: Tensor,
    earlier_x: Tensor | None,
    padding: Tensor | None,
    result: Tensor,
    slope: float,
    log2_ratio: float,
    *,
    x_is_query: bool,
) -> None:
    """Writes -sum_y exp(S_xy + dual_x + dual_y) weight_y, rescaled where `earlier_x` is given."""
    batch, heads, num_x, _ = x.shape
    x_block, y_block, warps = _tile(x)
    streaming.adjoint_kernel[(triton.cdiv(num_x, x_block), batch * heads)](
        x, y, dual_x, dual_y, weight_y, earlier_x, padding, result,
        *_strides(x, y),
        *(vector.stride(1) for vector in (dual_x, dual_y, weight_y, result)),
        heads, num_x, y.shape[2], slope * LOG2_E, log2_ratio,
        D=x.shape[3], BLOCK_X=x_block, BLOCK_Y=y_block, BLOCK_D=block(x.shape[3]),
        OPERAND=operand(x), PRECISION="ieee",
        X_IS_QUERY=x_is_query, RESCALE=earlier_x is not None,
        HAS_PADDING=padding is not None, num_warps=warps,
    )  # fmt: skip


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, start, padding, ctx.num_iters, ctx.slope, _ = inputs
    ctx.has_start = start is not None
    _, rows, cols = output
    ctx.mark_non_differentiable(rows, cols)
    ctx.save_for_backward(q, k, v, padding, rows, cols)


def _backward(ctx, grad_out, *_):
    q, k, v, padding, rows, cols = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_start = _sinkhorn_backward(
        grad_out, q, k, v, padding, rows, cols, ctx.num_iters, ctx.slope
    )
    return (
        grad_q, grad_k, grad_v, grad_start if ctx.has_start else None, None, None, None, None,
    )  # fmt: skip


_sinkhorn.register_autograd(_backward, setup_context=_setup_context)


def _strides(*tensors: Tensor) -> list[int]:
    """Batch, head and token strides of each."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def _widths(q: Tensor, v: Tensor) -> dict[str, int]:
    d, width = q.shape[3], v.shape[3]
    return {"D": d, "V_WIDTH": width, "BLOCK_D": block(d), "BLOCK_V": block(width)}


def _operands(q: Tensor, v: Tensor) -> dict[str, object]:
    return {"OPERAND": operand(q), "V_OPERAND": operand(v), "PRECISION": "ieee"}


def _warps_on_chip(n: int, m: int, *, backward: bool) -> int:
    if max(n, m) <= 64:
        return 2 if backward else 1
    return 8 if backward else 4


def _tile(q: Tensor) -> tuple[int, int, int]:
    """Tokens of the anchored and of the streamed side in a tile, and warps."""
    if q.dtype == torch.float32 or q.shape[3] > 64:
        return 64, 32, 4
    return 128, 64, 4


def _gradient_tile(q: Tensor) -> tuple[int, int, int]:
    """The same where more tiles are on chip at once."""
    x_block, y_block, warps = _tile(q)
    return x_block, y_block, max(warps, x_block // 16)


def _resident_tile(m: int) -> tuple[int, int]:
    """Queries that meet all keys at once, and warps."""
    return 32, 4
