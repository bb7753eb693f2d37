"""Over-relaxed Sinkhorn with few updates: a baseline for compiled layers."""

import torch
from torch import Tensor

from asap_exp.attention.base import Attention, register
from asap_exp.ops import attention_plan, predicted_dual, relaxed_sinkhorn_attention
from asap_exp.ops.backend import check_backend
from asap_exp.ops.checks import check_count, check_relaxation, check_temperature


@register("relaxed_sinkhorn")
class RelaxedSinkhornAttention(Attention):
    """Closure after `num_iters` - 1 updates, each to f + `relaxation` (F(f) - f); `eps` > 0."""

    def __init__(
        self,
        *,
        num_iters: int = 5,
        relaxation: float = 1.6,
        eps: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_count("num_iters", num_iters, 1)
        check_relaxation(relaxation)
        check_temperature(eps, None, 1)
        check_backend(backend)
        self.num_iters, self.relaxation = num_iters, relaxation
        self.eps, self.backend = eps, backend

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        return relaxed_sinkhorn_attention(
            q,
            k,
            v,
            num_iters=self.num_iters,
            relaxation=self.relaxation,
            eps=self.eps,
            key_padding_mask=key_padding_mask,
            backend=self.backend,
        )

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        heads, head_dim = q.shape[1], q.shape[3]
        no_slices = q.new_zeros(heads, 0, head_dim), q.new_zeros(heads, 0)
        dual = predicted_dual(
            q,
            k,
            *no_slices,
            refine=self.num_iters - 1,
            relaxation=torch.full((heads,), self.relaxation, dtype=torch.float64, device=q.device),
            eps=self.eps,
            key_padding_mask=key_padding_mask,
        )
        return attention_plan(q, k, dual, eps=self.eps, key_padding_mask=key_padding_mask)

    def extra_repr(self) -> str:
        return f"num_iters={self.num_iters}, relaxation={self.relaxation}, eps={self.eps}"
