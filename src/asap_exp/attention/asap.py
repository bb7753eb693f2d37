"""ASAP: the plan of a trained Sinkhorn layer in one shot, from fitted slices and weights."""

import warnings
from typing import Self

import torch
from torch import Tensor, nn

from asap_exp.attention.base import Attention, register
from asap_exp.ops import SlicedMap, attention_plan, map_attention, map_dual
from asap_exp.ops.backend import check_backend
from asap_exp.ops.checks import check_count, check_temperature

FROZEN = (
    "a compiled model is frozen (requires_grad=False). model.requires_grad_() lets it train; its "
    "maps were fitted to the activations that it had, so ask asap_exp.drift afterwards"
)


@register("asap")
class AsapAttention(Attention):
    """Attention with a fitted `SlicedMap`, whose tensors are its frozen parameters."""

    needs_calibration = True
    theta: Tensor
    weight: Tensor
    relaxation: Tensor | None

    def __init__(
        self,
        theta: Tensor,
        weight: Tensor,
        *more: Tensor | None,
        refine: int = 0,
        eps: float = 1.0,
        backend: str = "auto",
        **named: Tensor | None,
    ) -> None:
        """`more` and `named` are the other fields of `SlicedMap`, in their order or by name."""
        super().__init__()
        check_count("refine", refine, 0)
        check_temperature(eps, None, 1)
        check_backend(backend)
        for name, x in SlicedMap(theta, weight, *more, **named)._asdict().items():
            setattr(self, name, None if x is None else nn.Parameter(x, requires_grad=False))
        self.refine, self.eps, self.backend = refine, eps, backend

    def get_extra_state(self) -> Tensor:
        """Return `refine` and eps, so that a state_dict says all that there is to a map."""
        return torch.tensor([self.refine, self.eps], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        refine, self.eps = state.tolist()
        self.refine = int(refine)

    def train(self, mode: bool = True) -> Self:
        """Set the mode as any module does; warn that a frozen map stops a backward pass."""
        if mode and not any(parameter.requires_grad for parameter in self.parameters()):
            warnings.warn(FROZEN, stacklevel=2)
        return super().train(mode)

    @property
    def map(self) -> SlicedMap:
        return SlicedMap(*(getattr(self, name) for name in SlicedMap._fields))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        return map_attention(
            q,
            k,
            v,
            self.map,
            refine=self.refine,
            eps=self.eps,
            key_padding_mask=key_padding_mask,
            backend=self.backend,
        )

    def dual(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Compute the row dual `[B, H, N]` whose closure is returned, `refine` included."""
        return map_dual(
            q, k, self.map, refine=self.refine, eps=self.eps, key_padding_mask=key_padding_mask
        )

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        f_hat = self.dual(q, k, key_padding_mask=key_padding_mask)
        return attention_plan(q, k, f_hat, eps=self.eps, key_padding_mask=key_padding_mask)

    def extra_repr(self) -> str:
        heads, slices, head_dim = self.theta.shape
        return f"heads={heads}, slices={slices}, head_dim={head_dim}, refine={self.refine}"
