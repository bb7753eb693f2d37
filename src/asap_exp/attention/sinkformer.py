"""Sinkformers' attention as published: starts with a row step and counts half-steps."""

import torch
from torch import Tensor

from asap_exp.attention.base import register
from asap_exp.attention.sinkhorn import SinkhornAttention
from asap_exp.ops.backend import full_precision
from asap_exp.ops.checks import check_count
from asap_exp.ops.masking import blank, compute_dtype

GRADIENTS = ("unroll", "detach_col")
PADDINGS = ("exact", "sinkformer")


@register("sinkformer")
class SinkformerAttention(SinkhornAttention):
    """Attention with `half_steps` = 2 T + 1 half-steps: row, column, row, ..., row.

    This is T Sinkhorn updates (column, then row) from the dual of a row softmax, f^0_i =
    -LSE_j(S_ij), instead of f^0 = 0: one half-step alone is `softmax`, three are
    closure(-LSE_j(S)), and no number of half-steps equals a `num_iters` of `sinkhorn`.

    `gradient` "unroll" goes through every half-step, as in their models of images and point clouds.
    "detach_col" detaches each column dual, as in their text models, so that the plan has the
    gradient of softmax_j(S + g) with a constant g. `padding` is exact, or as in their code, where a
    padded query keeps its mass so that columns sum to more than 1 over the real tokens.

    Rows sum to 1 for any number of keys; theirs are scaled by m / n, which is 1 in self-attention.
    Their early stop, once row duals no longer change, is left out.

    Source: Sander et al., 2022, Sinkformers, published code (michaelsdr/sinkformers, 48c5cd3).
    Plain PyTorch with n x n memory.
    """

    def __init__(
        self,
        *,
        half_steps: int = 3,
        eps: float = 1.0,
        gradient: str = "unroll",
        padding: str = "exact",
    ) -> None:
        check_count("half_steps", half_steps, 3)
        if half_steps % 2 == 0:
            raise ValueError(f"half_steps must be odd (a row step is the last), got {half_steps}")
        for name, value, allowed in (
            ("gradient", gradient, GRADIENTS),
            ("padding", padding, PADDINGS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        super().__init__(num_iters=(half_steps - 1) // 2, eps=eps, backend="reference")
        self.half_steps, self.gradient, self.padding = half_steps, gradient, padding

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        v = blank(v, key_padding_mask, 2)
        with full_precision(q):
            plan = self.plan(q, k, key_padding_mask=key_padding_mask)
            return (plan @ v.to(plan.dtype)).to(v.dtype)

    def ready_dual(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        with full_precision(q):
            return self._duals(*self._masked_logits(q, k, key_padding_mask))[0]

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        with full_precision(q):
            S, queries = self._masked_logits(q, k, key_padding_mask)
            _, column = self._duals(S, queries)
            return (S + column[..., None, :]).softmax(dim=-1) * queries[..., None]

    def _masked_logits(
        self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return S `[B, H, N, N]`, -inf at padded keys, and `[B, 1, N]`: queries that have mass."""
        exact = self.padding == "exact"
        k = blank(k, key_padding_mask, 2)
        q = blank(q, key_padding_mask, 2) if exact else q
        S = q.to(compute_dtype(q)) @ k.to(compute_dtype(q)).transpose(-1, -2)
        S = S * (q.shape[-1] ** -0.5 / self.eps)
        if key_padding_mask is None:
            return S, torch.ones_like(q[:, :1, :, 0], dtype=torch.bool)
        valid = ~key_padding_mask
        some = valid.any(dim=-1, keepdim=True)  # an empty text masks nothing: its rows are zero
        S = S.masked_fill(~(valid | ~some)[:, None, None, :], float("-inf"))
        return S, (valid if exact else some.expand_as(valid))[:, None, :]

    def _duals(self, S: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return f^{T-1} `[B, H, N]` and g^T `[B, H, N]`, 0 at padded positions."""
        left_out = ~(queries | ~queries.any(dim=-1, keepdim=True))
        row = -S.logsumexp(dim=-1)
        for _ in range(self.num_iters):
            ready = row
            masked = ready.masked_fill(left_out, float("-inf"))
            column = -(S.masked_fill(S.isinf(), 0.0) + masked[..., None]).logsumexp(dim=-2)
            if self.gradient == "detach_col":
                column = column.detach()
            row = -(S + column[..., None, :]).logsumexp(dim=-1)
        return ready.masked_fill(~queries, 0.0), column

    @property
    def updates(self) -> str:
        return f"{self.half_steps} half-steps"

    def extra_repr(self) -> str:
        return f"half_steps={self.half_steps}, eps={self.eps}, padding={self.padding}"
