"""The launches of the forward pass for bfloat16 inputs where no gradient is needed.

Their duals are right to what bfloat16 is worth, but not rounded alike in every pass, which the
gradient would need. Half steps and the closing attention are passes over tiles (`folded`). Where a
head fits on chip, a closure is one launch (`whole_closure`), and so are the first column step and
all updates (`whole_head`).
"""

import torch
import triton
from torch import Tensor

from asap_exp.ops.kernels.closure import keys_and_values_in_registers
from asap_exp.ops.kernels.launch import Problem, head_strides, multiprocessors, strides
from asap_exp.ops.kernels.sinkhorn import plan_in_shared_memory, tiled_bf16
from asap_exp.ops.kernels.sinkhorn.forward import RESIDENT_KEYS
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block

SHORT_TOKENS = 128
"""Up to so many tokens on either side, the logits themselves stay on chip, as in `forward`."""

MANY_UPDATES, MANY_UPDATES_TOKENS = 10, 64
"""For so many updates of more tokens than this a plan on chip is faster than logits on chip."""

SOME_UPDATES = 4
"""For so many updates of more than `SHORT_TOKENS` it is faster than logits anew in every one."""

WHOLE_HEAD = 256
"""Up to so many tokens on either side, of up to 64 channels, a head's plan fits on chip."""

BLOCK_QUERIES = 64
"""So many queries at a time meet all keys of a head."""

KEY_TILE = 64
"""So many keys of a closure in one launch at a time."""

CLOSURE_REGISTERS = 168
"""Of one of its threads, so that a processor has room for three programs."""

PADDED_TO = 128
"""Parts of a dual are stored for a multiple of so many tokens: whole tiles."""

SMALLEST_SLOPE = 1e-9
"""Of the logits: duals are stored divided by it."""


class Side:
    """Queries or keys and their dual, in units of log 2 and in the matrix units' parts."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        batch, heads, self.count, _ = tokens.shape
        self.padded = triton.cdiv(self.count, PADDED_TO) * PADDED_TO
        self.duals = tokens.new_empty(2, batch, heads, self.count, dtype=torch.float32)
        shape = batch, heads, tiled_bf16.PARTS, self.padded
        self.parts = tokens.new_empty(shape, dtype=torch.bfloat16)
        self.steps = 0
        """How often `half_step` has set the dual."""

    @property
    def dual(self) -> Tensor:
        return self.duals[self.steps % 2]


def takes(problem: Problem) -> bool:
    """Whether these launches are for these inputs."""
    p = problem
    if not p.q.dtype == p.v.dtype == torch.bfloat16 or abs(p.to_log2) <= SMALLEST_SLOPE:
        return False
    tokens = max(p.n, p.m)
    if p.num_iters == 1:
        return tokens > SHORT_TOKENS
    if p.m > RESIDENT_KEYS:
        return True
    # Only a plan on chip is faster than one exponential an update, as `forward` has it.
    enough = SOME_UPDATES if tokens > SHORT_TOKENS else MANY_UPDATES
    return tokens > MANY_UPDATES_TOKENS and p.num_iters >= enough and has_plan_on_chip(p)


def forward(problem: Problem, start: Tensor | None, out: Tensor) -> None:
    """Writes `out`; `start` is f^0 `[B, H, N]`, None for zeros."""
    p = problem
    on_chip = has_plan_on_chip(p)
    if p.num_iters == 1 and on_chip and p.v.shape[3] <= 64:
        closure_by_heads(p, start, out)
        return
    queries, keys = Side(p.q), Side(p.k)
    if p.num_iters > 1 and on_chip:
        updates_by_heads(p, start, queries, keys)
    else:
        updates_in_passes(p, start, queries, keys)
    attention(p, queries, keys, out)


def has_plan_on_chip(problem: Problem) -> bool:
    """Whether shared memory holds the plan of a head; the kernel counts on Hopper's wgmma."""
    p = problem
    if max(p.n, p.m) > WHOLE_HEAD or p.q.shape[3] > 64:
        return False
    return p.q.is_cpu or torch.cuda.get_device_capability(p.q.device)[0] == 9


def closure_by_heads(problem: Problem, start: Tensor | None, out: Tensor) -> None:
    """Writes `out`, for T = 1; `start` is f^0 `[B, H, N]`, None for zeros."""
    p = problem
    rows, cols, tiles = room_by_heads(p)
    keys_and_values_in_registers.closure_kernel[(p.programs,)](
        p.q, p.k, p.v, start, p.padding, out, rows, cols, *strides(p.q, p.k, p.v, out),
        p.heads, p.n, p.m, p.to_log2, p.log2_ratio, **p.values, **tiles,
        HAS_START=start is not None, num_warps=4, num_stages=1, maxnreg=CLOSURE_REGISTERS,
        **EVERY_LAUNCH,
    )  # fmt: skip


def room_by_heads(problem: Problem) -> tuple[Tensor, Tensor, dict[str, object]]:
    """Room for the duals of queries and keys, and the constants of `whole_closure`."""
    p = problem
    n, tiles = block(p.n, BLOCK_QUERIES), triton.cdiv(p.m, KEY_TILE)
    rows = p.q.new_empty(p.programs, n, dtype=torch.float32)
    cols = p.q.new_empty(p.programs, tiles * KEY_TILE, dtype=torch.float32)
    return rows, cols, {"ROWS": n, "BLOCK_N": BLOCK_QUERIES, "TILES": tiles, "TILE": KEY_TILE}


def updates_by_heads(problem: Problem, start: Tensor | None, queries: Side, keys: Side) -> None:
    """The parts of g^T, and f^(T-1) as the queries' dual; `start` is f^0, None for zeros."""
    p = problem
    rows, cols, tiles = room_by_heads(p)
    keys_and_values_in_registers.column_step_kernel[(p.programs,)](
        p.q, p.k, start, p.padding, rows, cols, *strides(p.q, p.k),
        p.heads, p.n, p.m, p.to_log2, p.log2_ratio, **p.logits, **tiles,
        HAS_START=start is not None, num_warps=4, num_stages=1, **EVERY_LAUNCH,
    )  # fmt: skip
    smallest, warps, a_processor = (64, 4, 2) if max(p.n, p.m) <= 128 else (128, 8, 1)
    n_block, m_block = (max(block(count), smallest) for count in (p.n, p.m))
    # At most so many programs, each with a plan in shared memory, run at a time.
    programs = min(p.programs, a_processor * multiprocessors(p.q.device))
    plan_in_shared_memory.updates_kernel[(programs,)](
        p.q, p.k, p.padding, queries.dual, cols, keys.parts,
        p.q.new_empty(programs, n_block, m_block), *strides(p.q, p.k), cols.stride(0),
        p.programs, p.heads, p.n, p.m, keys.padded, p.num_iters, p.to_log2, p.log2_ratio,
        **p.logits, BLOCK_N=n_block, BLOCK_ROWS=BLOCK_QUERIES, BLOCK_M=m_block,
        num_warps=warps, num_stages=1, **EVERY_LAUNCH,
    )  # fmt: skip


def updates_in_passes(problem: Problem, start: Tensor | None, queries: Side, keys: Side) -> None:
    """g^T and its parts, and f^(T-1) as the queries' dual; `start` is f^0, None for zeros."""
    p = problem
    set_dual(p, queries, start)
    half_step(p, keys, queries, p.log2_ratio)
    for _ in range(1, p.num_iters):
        half_step(p, queries, keys, 0.0)
        half_step(p, keys, queries, p.log2_ratio)


def set_dual(problem: Problem, side: Side, dual: Tensor | None) -> None:
    """`dual` (natural units; None for zeros) as the side's."""
    p = problem
    tiled_bf16.parts_kernel[(p.programs * triton.cdiv(side.padded, PADDED_TO),)](
        dual, p.padding, side.dual, side.parts,
        p.heads, side.count, side.padded, p.to_log2,
        BLOCK=PADDED_TO, HAS_DUAL=dual is not None, HAS_PADDING=p.padding is not None,
        num_warps=1, **EVERY_LAUNCH,
    )  # fmt: skip


def half_step(problem: Problem, x: Side, y: Side, log2_ratio: float) -> None:
    """x's dual = log2_ratio - LSE_y(S + y's dual); an earlier dual of x tells its size."""
    p = problem
    x_block, y_block, warps = p.tile
    previous = x.dual if x.steps else None
    x.steps += 1
    tiled_bf16.half_step_kernel[(p.programs * triton.cdiv(x.count, x_block),)](
        x.tokens, y.tokens, y.parts, previous, p.padding, x.dual, x.parts,
        *strides(x.tokens, y.tokens), *head_strides(previous, x.dual),
        p.heads, x.count, y.count, x.padded, y.padded, p.to_log2, log2_ratio,
        **p.logits, BLOCK_X=x_block, BLOCK_Y=y_block,
        HAS_PREVIOUS=previous is not None, EVEN=y.count % y_block == 0, num_warps=warps,
        **EVERY_LAUNCH,
    )  # fmt: skip


def attention(problem: Problem, queries: Side, keys: Side, out: Tensor) -> None:
    """out = softmax_j(S + g) v; the queries' dual is about minus the log of the sums."""
    p = problem
    n_block, m_block, warps = p.tile
    tiled_bf16.attention_kernel[(p.programs * triton.cdiv(p.n, n_block),)](
        p.q, p.k, p.v, keys.parts, queries.dual, p.padding, out,
        *strides(p.q, p.k, p.v, out), *head_strides(queries.dual),
        p.heads, p.n, p.m, keys.padded, p.to_log2,
        **p.values, BLOCK_N=n_block, BLOCK_M=m_block,
        EVEN=p.m % m_block == 0, num_warps=warps, **EVERY_LAUNCH,
    )  # fmt: skip
