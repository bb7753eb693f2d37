"""The launches of the forward pass that a gradient can follow; `inference` has faster ones.

Where a head's logits fit on chip one launch does all (`short`). Where its keys do, one launch does
all updates (`resident`). Else every half step is a pass over tiles (`streaming`).
"""

import torch
import triton
from torch import Tensor

from asap_exp.ops.kernels.launch import Problem, head_strides, strides
from asap_exp.ops.kernels.sinkhorn import keys_in_registers, logits_in_registers, tiled
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, LOG2_E, block

RESIDENT_KEYS = 512
"""Up to so many keys, a head's keys stay on chip: beyond, two passes an update are as fast."""

RESIDENT_QUERIES = 32
"""So many queries at a time meet all of them."""


def on_chip(
    problem: Problem,
    start: Tensor | None,
    out: Tensor,
    rows: Tensor | None,
    cols: Tensor | None,
    save: bool,
    relaxation: float | None = None,
) -> None:
    """`rows` and `cols` are read and written with `save` alone, which takes no relaxation."""
    p = problem
    if relaxation is not None and p.num_iters > 1:  # more code, and more of it in logarithms
        warps = p.on_chip_warps(4, 8)
    else:
        warps, relaxation = p.on_chip_warps(2 if p.few else 1, 8), None
    logits_in_registers.forward_kernel[(p.programs,)](
        p.q, p.k, p.v, start, p.padding, out, rows, cols, *strides(p.q, p.k, p.v, out),
        p.heads, p.n, p.m, p.num_iters, p.to_log2, p.log2_ratio, relaxation or 1.0,
        **p.values, BLOCK_N=block(p.n), BLOCK_M=block(p.m),
        HAS_START=start is not None, SAVE=save, RELAXED=relaxation is not None,
        num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


def in_passes(
    problem: Problem, start: Tensor | None, out: Tensor, rows: Tensor, cols: Tensor, save: bool
) -> None:
    p = problem
    if not save:  # room for the duals of one update and the next
        rows = p.q.new_empty(*p.q.shape[:2], 2, p.n, dtype=torch.float32)
        cols = p.q.new_empty(*p.q.shape[:2], 2, p.m, dtype=torch.float32)
    elif start is None:
        rows[:, :, 0] = 0.0
    first = None if start is None else torch.mul(start, LOG2_E, out=rows[:, :, 0])
    column_step(p, first, None, cols[:, :, 0])
    if p.m <= RESIDENT_KEYS and p.q.element_size() == 2 and p.num_iters > 1:
        row, col = updates_resident(p, rows, cols, save)
    else:
        row, col = updates_streaming(p, rows, cols, save)
    last = rows[:, :, p.num_iters % rows.shape[2]]
    if p.v.shape[3]:
        attention(p, col, row, out, last, save)
    else:  # the duals alone are wanted
        row_step(p, col, row, last)


def updates_resident(
    problem: Problem, rows: Tensor, cols: Tensor, save: bool
) -> tuple[Tensor | None, Tensor]:
    """f^(T-1) and g^T from f^0 and g^1, T > 1."""
    p = problem
    keys_in_registers.updates_kernel[(p.programs,)](
        p.q, p.k, rows, cols, p.padding,
        *strides(p.q, p.k), *rows.stride()[1:3], *cols.stride()[1:3],
        p.heads, p.n, p.m, p.num_iters, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_N=RESIDENT_QUERIES, BLOCK_M=block(p.m), SAVE=save, num_warps=4,
        **EVERY_LAUNCH,
    )  # fmt: skip
    last = p.num_iters - 1 if save else 0
    return rows[:, :, last], cols[:, :, last]


def updates_streaming(
    problem: Problem, rows: Tensor, cols: Tensor, save: bool
) -> tuple[Tensor | None, Tensor]:
    """f^(T-1), None for T = 1, and g^T from f^0 and g^1."""
    p = problem
    f: Tensor | None = None
    g = cols[:, :, 0]
    for t in range(1, p.num_iters):
        f_next, g_next = rows[:, :, t % rows.shape[2]], cols[:, :, t % cols.shape[2]]
        row_step(p, g, f, f_next)
        column_step(p, f_next, g, g_next)
        f, g = f_next, g_next
    return f, g


def column_step(
    problem: Problem, row: Tensor | None, previous: Tensor | None, result: Tensor
) -> None:
    """g = -LSE_i(S + row) + log(n / m); `previous`, an earlier g, spares the running maxima."""
    p = problem
    sides = p.k, p.q, row, previous, result
    _half_step(p, *sides, p.log2_ratio, x_is_query=False)


def row_step(problem: Problem, col: Tensor, previous: Tensor | None, result: Tensor) -> None:
    """f = -LSE_j(S + col); `previous`, an earlier f, spares the running maxima."""
    p = problem
    sides = p.q, p.k, col, previous, result
    _half_step(p, *sides, 0.0, x_is_query=True)


def _half_step(
    problem: Problem,
    x: Tensor,
    y: Tensor,
    dual_y: Tensor | None,
    previous: Tensor | None,
    result: Tensor,
    log2_ratio: float,
    *,
    x_is_query: bool,
) -> None:
    p = problem
    x_block, y_block, warps = p.tile
    num_x, num_y = x.shape[2], y.shape[2]
    tiled.half_step_kernel[(p.programs * triton.cdiv(num_x, x_block),)](
        x, y, dual_y, previous, p.padding, result,
        *strides(x, y), *head_strides(dual_y, previous, result),
        p.heads, num_x, num_y, p.to_log2, log2_ratio,
        **p.logits, BLOCK_X=x_block, BLOCK_Y=y_block,
        X_IS_QUERY=x_is_query, HAS_DUAL=dual_y is not None, HAS_PREVIOUS=previous is not None,
        num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip


def attention(
    problem: Problem, col: Tensor, row: Tensor | None, out: Tensor, last: Tensor, save: bool
) -> None:
    """out = softmax_j(S + col) v, and with `save` its dual in `last`; `row` is an earlier dual."""
    p = problem
    n_block, m_block, warps = p.tile
    tiled.attention_kernel[(p.programs * triton.cdiv(p.n, n_block),)](
        p.q, p.k, p.v, col, row, p.padding, out, last,
        *strides(p.q, p.k, p.v, out), *head_strides(col, row, last),
        p.heads, p.n, p.m, p.to_log2,
        **p.values, BLOCK_N=n_block, BLOCK_M=m_block,
        HAS_PREVIOUS=row is not None, SAVE=save, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip
