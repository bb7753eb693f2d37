"""ESPFormer's attention: a doubly-stochastic baseline from sorts, without iteration."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.attention.base import register
from asap_exp.attention.learned import LearnedAttention
from asap_exp.ops import espformer_attention, espformer_plan
from asap_exp.ops.backend import check_backend, chosen, full_precision
from asap_exp.ops.checks import check_among, check_count, check_weighing
from asap_exp.ops.masking import compute_dtype

SORTING = ("soft", "hard")


@torch.compiler.disable
def untraced_attention(*inputs: Any, **options: Any) -> Tensor:
    """Run the operator outside of a compiled graph, where all slices take a minute to compile."""
    return espformer_attention(*inputs, **options)


@register("espformer")
class EspformerAttention(LearnedAttention):
    """Attention with an expected sliced plan.

    `temperature` >= 0 is an inverse temperature: 0 weighs all slices equally. `tau` > 0 softens the
    sorts; with `sorting` "hard" it only shapes their gradients, and rows and columns of the plan
    have exact sums. `slices` = 0 sorts along the axes of a head, as published; a larger number
    along as many learned directions per head.
    """

    parameter_names = ("direction",)
    younger_options = ("sorting", "slices", "backend")

    def __init__(
        self,
        *,
        temperature: float = 10.0,
        tau: float = 1e-3,
        sorting: str = "soft",
        slices: int = 0,
        backend: str = "auto",
    ) -> None:
        check_weighing(temperature, tau)
        check_among("sorting", sorting, SORTING)
        check_count("slices", slices, 0)
        check_backend(backend)
        super().__init__()
        self.temperature, self.tau = float(temperature), float(tau)
        self.sorting, self.slices, self.backend = sorting, slices, backend

    def start(self, heads: int, head_dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        return {"direction": normal(heads, self.slices, head_dim)} if self.slices else {}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        slow = chosen(self.backend, q) == "reference"
        operator = untraced_attention if slow else espformer_attention
        return operator(
            q, k, v, **self._options(q), key_padding_mask=key_padding_mask, backend=self.backend
        )

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return espformer_plan(q, k, **self._options(q), key_padding_mask=key_padding_mask)

    def _options(self, q: Tensor) -> dict[str, Any]:
        """Return the arguments of the operators."""
        direction = self.learned(q, compute_dtype(q)).get("direction")
        with full_precision(q):
            theta = None if direction is None else F.normalize(direction, dim=-1)
        return {
            "temperature": self.temperature,
            "tau": self.tau,
            "hard": self.sorting == "hard",
            "theta": theta,
        }

    def extra_repr(self) -> str:
        along = f"{self.slices} learned" if self.slices else "axes"
        return (
            f"temperature={self.temperature}, tau={self.tau}, sorting={self.sorting}, "
            f"slices={along}"
        )
