"""Sinkhorn cut to fewer updates than its teacher makes."""

from collections.abc import Sequence
from dataclasses import dataclass

from asap_exp.attention import Attention, RelaxedSinkhornAttention, SinkhornAttention
from asap_exp.core.config import BudgetConfig, EvaluateConfig
from asap_exp.core.console import say
from asap_exp.core.records.row import RowGroup


@dataclass(frozen=True)
class Truncation:
    """Sinkhorn cut to `num_iters` updates, plain ones or relaxed."""

    num_iters: int
    relaxation: float | None = None

    @property
    def group(self) -> RowGroup:
        return "truncated" if self.relaxation is None else "relaxed"

    @property
    def label(self) -> str:
        relaxed = "" if self.relaxation is None else f", relaxed by {self.relaxation:g}"
        return f"Sinkhorn, T' = {self.num_iters}{relaxed}"

    def attention(self, eps: float) -> Attention:
        if self.relaxation is None:
            return SinkhornAttention(num_iters=self.num_iters, eps=eps)
        return RelaxedSinkhornAttention(
            num_iters=self.num_iters, relaxation=self.relaxation, eps=eps
        )


def truncations(asked: EvaluateConfig | BudgetConfig) -> list[Truncation]:
    """Return the requested truncations: the plain ones, then the relaxed ones."""
    plain = [Truncation(num_iters) for num_iters in asked.truncations]
    relaxed = asked.relaxed_truncations
    return plain + [Truncation(num_iters, asked.relaxation) for num_iters in relaxed]


def shorter(cuts: Sequence[Truncation], num_iters: int) -> list[Truncation]:
    """Return those with fewer updates than the teacher's `num_iters`; print which are left out."""
    left_out = [cut.label for cut in cuts if cut.num_iters >= num_iters]
    if left_out:
        say(f"Left out, since the teacher itself has T = {num_iters}: {'; '.join(left_out)}")
    return [cut for cut in cuts if cut.num_iters < num_iters]
