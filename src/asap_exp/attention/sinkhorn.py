"""Sinkhorn attention, the teacher: the plan of a fixed number of Sinkhorn updates."""

from torch import Tensor

from asap_exp.attention.base import Attention, register
from asap_exp.ops import attention_plan, sinkhorn_attention, sinkhorn_duals
from asap_exp.ops.backend import check_backend
from asap_exp.ops.checks import (
    check_count,
    check_gradient_updates,
    check_implicit_steps,
    check_temperature,
)


@register("sinkhorn")
class SinkhornAttention(Attention):
    """Attention after `num_iters` >= 1 full updates (column, then row step) at `eps` > 0.

    The gradient is that of all updates, of the last `gradient_updates` alone, or the implicit one
    by `implicit_steps` of conjugate gradients.
    """

    younger_options = ("gradient_updates", "implicit_steps")

    def __init__(
        self,
        *,
        num_iters: int = 20,
        gradient_updates: int | None = None,
        implicit_steps: int | None = None,
        eps: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_count("num_iters", num_iters, 1)
        check_gradient_updates(gradient_updates, num_iters)
        check_implicit_steps(implicit_steps, gradient_updates)
        check_temperature(eps, None, 1)
        check_backend(backend)
        self.num_iters, self.eps, self.backend = num_iters, eps, backend
        self.gradient_updates, self.implicit_steps = gradient_updates, implicit_steps

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        return sinkhorn_attention(
            q,
            k,
            v,
            num_iters=self.num_iters,
            gradient_updates=self.gradient_updates,
            implicit_steps=self.implicit_steps,
            eps=self.eps,
            key_padding_mask=key_padding_mask,
            backend=self.backend,
        )

    def ready_dual(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Return f^{T-1} `[B, H, N]`: the dual whose closure is this layer's plan."""
        return sinkhorn_duals(
            q, k, num_iters=self.num_iters, eps=self.eps, key_padding_mask=key_padding_mask
        ).ready

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        ready = self.ready_dual(q, k, key_padding_mask=key_padding_mask)
        return attention_plan(q, k, ready, eps=self.eps, key_padding_mask=key_padding_mask)

    @property
    def updates(self) -> str:
        """Number of updates, as tables show it."""
        return f"T = {self.num_iters}"

    def extra_repr(self) -> str:
        options = ("num_iters", "eps", "gradient_updates", "implicit_steps")
        given = ((name, getattr(self, name)) for name in options)
        return ", ".join(f"{name}={value}" for name, value in given if value is not None)
