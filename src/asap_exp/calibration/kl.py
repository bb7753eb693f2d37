"""KL from the teacher's plan to that of a predicted dual, in nats per row, with its gradient.

With A = exp(S + g + f) and A^ = exp(S + g^ + f^) the logits cancel in the divergence,

    sum_i KL(A_i || A^_i) = sum_j c_j (g_j - g^_j) + sum_i (f_i - f^_i),   c_j = sum_i A_ij,

so no logarithm of a plan is taken and none underflows, however large the logits are.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from asap_exp.attention import AsapAttention, LayerInputs, SinkhornAttention
from asap_exp.core.agreement import alone, total
from asap_exp.ops.backend import full_precision
from asap_exp.ops.masking import blank, effective_padding
from asap_exp.ops.reference import column_step, logits, row_step


class Target(NamedTuple):
    """A recorded batch of one layer, and what the divergence needs of the teacher's plan there.

    q and k `[B, H, N, D]`, the mask `[B, N]` or None, the plan's duals `row` and `column` and the
    sums of its columns `column_sums` `[B, H, N]`; these sums are 0 at padded places.
    """

    q: Tensor
    k: Tensor
    key_padding_mask: Tensor | None
    row: Tensor
    column: Tensor
    column_sums: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self if tensor is not None)


@torch.no_grad()
def teacher_target(inputs: LayerInputs, teacher: SinkhornAttention) -> Target:
    q, k, _, mask = inputs
    ready = teacher.ready_dual(q, k, key_padding_mask=mask)
    S, row, column = plan_of(q, k, ready, mask, teacher.eps)
    plan = blank(blank((S + row[..., None] + column[..., None, :]).exp(), mask, 2), mask, 3)
    return Target(*inputs.copied(), row, column, plan.sum(dim=-2))


def total_kl(attend: AsapAttention, target: Target) -> Tensor:
    """Return KL(teacher's row || row of `attend`), summed over valid rows and samples: `[H]`."""
    q, k, mask, row, column, column_sums = target
    dual = attend.dual(q, k, key_padding_mask=mask)
    _, row_hat, column_hat = plan_of(q, k, dual, mask, attend.eps, one_pass=attend.one_pass)
    rows = blank(row - row_hat, mask, 2).sum(dim=(0, 2))
    return ((column - column_hat) * column_sums).sum(dim=(0, 2)) + rows


def plan_of(
    q: Tensor,
    k: Tensor,
    dual: Tensor,
    mask: Tensor | None,
    eps: float,
    *,
    one_pass: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, and row and column dual, of the closure of `dual` or of one pass with it.

    By the reference operators for teacher and map alike: a difference is the dual's own.
    """
    with full_precision(q):
        padding = effective_padding(mask)
        S = logits(q, k, eps=eps, scale=q.shape[-1] ** -0.5, mask=mask)
        column = dual if one_pass else column_step(S, dual, padding)
        return S, row_step(S, column, padding), column


class Rows(Protocol):
    """A recorded batch, as `Target` is."""

    @property
    def q(self) -> Tensor: ...
    @property
    def key_padding_mask(self) -> Tensor | None: ...


def num_rows(batch: Rows) -> int:
    """Return the valid rows of a head's plans in a batch."""
    if batch.key_padding_mask is None:
        return batch.q.shape[0] * batch.q.shape[2]
    return int((~batch.key_padding_mask).sum())


def rows_on_device(batch: Rows) -> Tensor | int:
    """Return `num_rows`, at least 1, without waiting for a GPU."""
    if batch.key_padding_mask is None:
        return max(num_rows(batch), 1)
    return (~batch.key_padding_mask).sum().clamp(min=1)


def rows_of_all(batches: Sequence[Rows]) -> Sequence[Tensor | int]:
    """Return the valid rows of each batch, at least 1, those of the other ranks included."""
    if alone():
        return [rows_on_device(batch) for batch in batches]
    rows = torch.tensor([num_rows(batch) for batch in batches])
    found: list[int] = total(rows).clamp(min=1).tolist()
    return found


def mean_kl(attend: AsapAttention, targets: Iterable[Target]) -> Tensor:
    """Return the mean over the valid rows of all `targets` and ranks: `[H]`, float64, in nats."""
    return mean_over_rows(lambda target: total_kl(attend, target), targets)


AnyRows = TypeVar("AnyRows", bound=Rows)


@torch.no_grad()
def mean_over_rows(measure: Callable[[AnyRows], Tensor], batches: Iterable[AnyRows]) -> Tensor:
    """Return the mean over all valid rows, of all ranks, of sums over each batch: float64."""
    sums, rows = torch.zeros(()), 0
    for batch in batches:
        sums = sums.to(batch.q.device) + measure(batch).double()
        rows += num_rows(batch)
    return total(sums) / max(total(rows), 1)
