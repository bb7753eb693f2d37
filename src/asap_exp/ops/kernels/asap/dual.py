"""Sliced potentials and the row dual made from them: project, sort, sum up, undo the sort.

Forward only, self-attention only. The mathematics is that of `reference.potentials` and
`reference.asap`. Up to `FUSED_TOKENS` tokens, one program computes the dual of a head. For longer
sequences, one launch projects all tokens on all slices; a second launch sorts the projections, sums
up the potentials, undoes the sort and weights them; if one program cannot hold all slices of a
head, a third launch adds the partial sums. Beyond `SORTED_TOKENS` tokens, `torch.sort` replaces the
second launch. A few floats per token and slice are stored, and nothing of size n x m.
"""

import torch
import triton
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.asap import projection
from asap_exp.ops.kernels.asap.adaptive_features import pool_kernel
from asap_exp.ops.kernels.asap.dual_kernels import dual_kernel, potential_kernel, sum_kernel
from asap_exp.ops.kernels.asap.sort_layout import (
    slices_in_program,
    slices_that_fill_a_warp,
    sort_constants,
    word_bytes,
)
from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, block, mask_bytes, unit_stride
from asap_exp.ops.masking import blank, centre, effective_padding
from asap_exp.ops.reference import adaptive
from asap_exp.ops.routing import choose

SORTED_TOKENS = 4096
"""Maximum number of tokens of a slice that one program sorts."""

PROJECTED_TOKENS = 64
"""Tokens that one program projects."""

POOLED_TOKENS = 64
"""Tokens per block that meet the tokens pooled at the ends of the slices."""

FUSED_TOKENS = 256
"""Maximum number of 16-bit tokens of a head that one program projects and sorts."""

FUSED_BYTES = 8 * 1024
"""Maximum number of bytes of all slices that this program sorts."""

FUSED_BLOCK = 64
"""Tokens that this program projects at a time."""

FUSED_STAGES = 1
"""Blocks of tokens in flight in this program."""


def self_attention_alone(call: Call) -> str | None:
    """Return why these kernels do not take the call, or None if they do."""
    if call.n != call.m:
        return f"takes as many queries as keys, got {call.n} and {call.m}"
    if call.gradient:
        return "has no gradient"
    return None


def one_program_refusal(call: Call) -> str | None:
    """Return why one program cannot project and sort all slices of a head, or None if it can."""
    if call.n > FUSED_TOKENS:
        return f"takes up to {FUSED_TOKENS} tokens, got {call.n}"
    if call.dtype == torch.float32:
        return "takes 16-bit queries and keys, got float32"
    if call.slices == 0:
        return "has no slice to sort"
    slices = slices_that_fill_a_warp(call.slices, call.n, call.dtype)
    size = slices * block(call.n) * word_bytes(call.dtype)
    if size > FUSED_BYTES:
        return f"sorts up to {FUSED_BYTES} bytes per head, got {size}"
    return None


def sort_refusal(call: Call) -> str | None:
    """Return why no program can sort a slice, or None if one can."""
    if call.n > SORTED_TOKENS:
        return f"takes up to {SORTED_TOKENS} tokens, got {call.n}"
    return None


def sliced_potentials(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Compute exact 1-D Kantorovich potentials of the queries, centred, `[B, H, L, N]` float32.

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
    adaptive_weight: Tensor | None,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Compute the predicted dual f_hat, centred, `[B, H, N]` float32; no gradient.

    f_hat = sum_l weight_l phi_l + query_weight . [q ; |q|^2] + adaptive_weight . features, with
    weight `[H, L]`, query_weight `[H, D + 1]` and adaptive_weight `[H, 5, L]`; the other arguments
    are as in `sliced_potentials`. Source of the formula: `asap_exp.ops.reference.asap`.
    """
    weights = (theta, weight, query_weight, adaptive_weight)
    return _sliced_dual(q, k, *weights, key_padding_mask, scale / eps)


@torch.library.custom_op("asap_exp::sliced_potentials", mutates_args=())
def _sliced_potentials(
    q: Tensor, k: Tensor, theta: Tensor, padding: Tensor | None, slope: float
) -> Tensor:
    with torch.cuda.device_of(q):
        projections, _ = _project(q, k, theta, None, padding, slope)
        route = choose("potential_sort", _call(q, theta))
        return route.launch(projections, padding, q.dtype)


@_sliced_potentials.register_fake
def _(q: Tensor, k: Tensor, theta: Tensor, *_: object) -> Tensor:
    batch, heads, n = q.shape[:3]
    return q.new_empty(batch, heads, theta.shape[1], n, dtype=torch.float32)


@torch.library.custom_op("asap_exp::sliced_dual", mutates_args=())
def _sliced_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> Tensor:
    weights = (theta, weight, query_weight, adaptive_weight)
    with torch.cuda.device_of(q):
        return choose("dual_sort", _call(q, theta)).launch(q, k, *weights, padding, slope)


@_sliced_dual.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def _call(q: Tensor, theta: Tensor) -> Call:
    """Return the `Call` that the routes of the sort decide by."""
    _, _, n, head_dim = q.shape
    return Call(n, n, head_dim, 0, q.dtype, q.dtype, slices=theta.shape[1])


def dual_by_heads(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> Tensor:
    """Compute f_hat; one program per head."""
    projections, f_hat = _unwritten(q, theta)
    tensors, numbers, constants = _operands(q, k, theta, query_weight, padding, slope)
    batch, heads, n = f_hat.shape
    slices_per_program = slices_that_fill_a_warp(theta.shape[1], n, q.dtype)
    phi, partial_sums = projections[:, :, 0], f_hat
    if adaptive_weight is not None:
        phi, partial_sums = _adaptive_room(projections, 1)
        adaptive_weight = adaptive_weight.contiguous()
    if f_hat.numel():
        dual_kernel[(batch * heads,)](
            *tensors, weight.contiguous(), adaptive_weight, projections, phi, partial_sums, f_hat,
            *numbers, phi.stride(1),
            **constants, **sort_constants(slices_per_program, n, q.dtype, padding),
            ADAPTIVE=adaptive_weight is not None, TOKENS=FUSED_BLOCK, num_stages=FUSED_STAGES,
            **EVERY_LAUNCH,
        )  # fmt: skip
    return f_hat


def dual_by_groups(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> Tensor:
    """Compute f_hat; one program per group of slices of a head."""
    projections, f_hat = _project(q, k, theta, query_weight, padding, slope)
    _weighted_potentials(projections, padding, q, k, weight.contiguous(), adaptive_weight, f_hat)
    return f_hat


def dual_by_torch(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> Tensor:
    """Compute f_hat, sorting with `torch.sort`."""
    projections, f_hat = _project(q, k, theta, query_weight, padding, slope)
    phi = potentials_by_torch(projections, padding, q.dtype)
    f_hat += torch.einsum("hl,bhln->bhn", weight.float(), phi)
    if adaptive_weight is not None:
        x, y = projections.unbind(2)
        psi = adaptive.of_projections(phi, x, y, q, k, padding)
        f_hat += torch.einsum("hpl,bhpln->bhn", adaptive_weight.float(), psi)
    return centre(f_hat, effective_padding(padding))


def _adaptive_room(projections: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Allocate partial sums and potentials; projections are read again, so not overwritten."""
    batch, heads, _, slices, n = projections.shape
    phi = projections.new_empty(batch, heads, slices, n)
    return phi, projections.new_empty(batch, heads, groups, 3, n)


def _project(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    query_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Compute <q, theta_l> and slope <k, theta_l> `[B, H, 2, L, N]`, and the query features."""
    projections, linear = _unwritten(q, theta)
    tensors, numbers, constants = _operands(q, k, theta, query_weight, padding, slope)
    batch, heads, n = linear.shape
    if linear.numel():
        projection.project_kernel[(batch * heads, triton.cdiv(n, PROJECTED_TOKENS))](
            *tensors, projections, linear, *numbers,
            **constants, TOKENS=PROJECTED_TOKENS, num_warps=4, **EVERY_LAUNCH,
        )  # fmt: skip
    return projections, linear


def _unwritten(q: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    projections = q.new_empty(batch, heads, 2, theta.shape[1], n, dtype=torch.float32)
    return projections, q.new_empty(batch, heads, n, dtype=torch.float32)


def _operands(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    query_weight: Tensor | None,
    padding: Tensor | None,
    slope: float,
) -> tuple[tuple[Tensor | None, ...], tuple[float, ...], dict[str, object]]:
    """Return what `project_tokens` reads: tensors, strides and other numbers, constants."""
    _, heads, n, width = q.shape
    slices = theta.shape[1]
    q, k = unit_stride(q), unit_stride(k)
    u = None if query_weight is None else query_weight.contiguous()
    tensors = (q, k, theta.contiguous(), u, mask_bytes(padding))
    numbers = (*q.stride()[:3], *k.stride()[:3], heads, n, slices, slope)
    constants = {
        "D": width,
        "BLOCK_D": block(width),
        **projection.constants(slices, q.dtype),
        "HAS_PADDING": padding is not None,
        "HAS_QUERY_WEIGHT": query_weight is not None,
    }
    return tensors, numbers, constants


def potentials_by_groups(projections: Tensor, padding: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Compute centred phi `[B, H, L, N]`; one program per group of slices."""
    phi = torch.empty_like(projections[:, :, 0])
    _sort(projections, padding, dtype, phi, None, None, None)
    return phi


def _weighted_potentials(
    projections: Tensor,
    padding: Tensor | None,
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    adaptive_weight: Tensor | None,
    f_hat: Tensor,
) -> None:
    """Add the weighted sums of potentials and adaptive features to `f_hat`, and centre it."""
    batch, heads, _, slices, n = projections.shape
    groups = triton.cdiv(slices, slices_in_program(slices, n, q.dtype))
    if adaptive_weight is not None and slices:
        phi, partial_sums = _adaptive_room(projections, groups)
        _sort(
            projections, padding, q.dtype, phi, weight, adaptive_weight.contiguous(), partial_sums
        )
        _pool(q, k, partial_sums, padding, f_hat)
        return
    single_program = groups == 1
    partial_sums = f_hat if single_program else projections.new_empty(batch, heads, groups, n)
    _sort(projections, padding, q.dtype, projections[:, :, 0], weight, None, partial_sums)
    if not single_program and f_hat.numel():
        sum_kernel[(batch * heads,)](
            partial_sums, mask_bytes(padding), f_hat, heads, n, groups,
            BLOCK_N=block(n), HAS_PADDING=padding is not None,
            num_warps=min(max(1, block(n) // 256), 8), **EVERY_LAUNCH,
        )  # fmt: skip


def _pool(
    q: Tensor, k: Tensor, partial_sums: Tensor, padding: Tensor | None, f_hat: Tensor
) -> None:
    """Add the pooled partial sums to `f_hat`, and centre it."""
    batch, heads, groups, _, n = partial_sums.shape
    if f_hat.numel() == 0:
        return
    q, k, width = unit_stride(q), unit_stride(k), q.shape[3]
    like_slices = projection.constants(0, q.dtype)
    pool_kernel[(batch * heads,)](
        q, k, partial_sums, mask_bytes(padding), f_hat, *q.stride()[:3], *k.stride()[:3],
        heads, n, groups, D=width, BLOCK_D=block(width), TOKENS=min(POOLED_TOKENS, block(n)),
        OPERAND=like_slices["THETA_OPERAND"], PRECISION=like_slices["THETA_PRECISION"],
        HAS_PADDING=padding is not None, num_warps=4, **EVERY_LAUNCH,
    )  # fmt: skip


def _sort(
    projections: Tensor,
    padding: Tensor | None,
    dtype: torch.dtype,
    phi: Tensor,
    weight: Tensor | None,
    adaptive_weight: Tensor | None,
    partial_sums: Tensor | None,
) -> None:
    """Write `phi`, and with a weight also each program's part of the weighted sum.

    If one program has all slices of a head, `partial_sums` is f_hat: the program adds the sum to it
    and centres it. `phi` may overwrite the projections of the queries, except with adaptive
    weights: then `partial_sums` `[.., 3, n]` also receives the weights of the keys and queries.
    """
    batch, heads, _, slices, n = projections.shape
    if phi.numel() == 0:
        return
    slices_per_program = slices_in_program(slices, n, dtype)
    potential_kernel[(batch * heads, triton.cdiv(slices, slices_per_program))](
        projections, mask_bytes(padding), weight, adaptive_weight, phi, partial_sums,
        phi.stride(1), heads, n, slices,
        **sort_constants(slices_per_program, n, dtype, padding),
        HAS_PADDING=padding is not None, HAS_WEIGHT=weight is not None,
        SINGLE_PROGRAM=slices_per_program >= slices and adaptive_weight is None,
        ADAPTIVE=adaptive_weight is not None,
        **EVERY_LAUNCH,
    )  # fmt: skip


def potentials_by_torch(projections: Tensor, padding: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Compute centred phi `[B, H, L, N]`, sorting with `torch.sort`."""
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
