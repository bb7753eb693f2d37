"""ESPFormer's attention: a doubly-stochastic baseline from sorts, without iteration."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.attention.base import register
from asap_exp.attention.learned import LearnedAttention
from asap_exp.ops.backend import full_precision
from asap_exp.ops.checks import check_among, check_count
from asap_exp.ops.masking import compute_dtype
from asap_exp.ops.reference.espformer import espformer_attention, espformer_plan

SORTING = ("soft", "hard")


@register("espformer")
class EspformerAttention(LearnedAttention):
    """Attention with an expected sliced plan.

    `temperature` >= 0 is an inverse temperature: 0 weighs all slices equally. `tau` > 0 softens the
    sorts; with `sorting` "hard" it only shapes their gradients, and rows and columns of the plan
    have exact sums. `slices` = 0 sorts along the axes of a head, as published; a larger number
    along as many learned directions per head.
    """

    parameter_names = ("direction",)
    younger_options = ("sorting", "slices")

    def __init__(
        self,
        *,
        temperature: float = 10.0,
        tau: float = 1e-3,
        sorting: str = "soft",
        slices: int = 0,
    ) -> None:
        for name, x in (("temperature", temperature), ("tau", tau)):
            if isinstance(x, bool) or not isinstance(x, Real):
                raise TypeError(f"{name} must be a number, got {x!r}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and >= 0, got {temperature}")
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be finite and > 0, got {tau}")
        check_among("sorting", sorting, SORTING)
        check_count("slices", slices, 0)
        super().__init__()
        self.temperature, self.tau = float(temperature), float(tau)
        self.sorting, self.slices = sorting, slices

    def start(self, heads: int, head_dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        return {"direction": normal(heads, self.slices, head_dim)} if self.slices else {}

    @torch.compiler.disable  # a graph of all slices takes a minute to compile
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        with full_precision(q):
            return espformer_attention(
                q, k, v, key_padding_mask=key_padding_mask, **self._options(q)
            )

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        with full_precision(q):
            return espformer_plan(q, k, key_padding_mask=key_padding_mask, **self._options(q))

    def _options(self, q: Tensor) -> dict[str, Any]:
        """Return the arguments of the operators."""
        direction = self.learned(q, compute_dtype(q)).get("direction")
        return {
            "temperature": self.temperature,
            "tau": self.tau,
            "hard": self.sorting == "hard",
            "theta": None if direction is None else F.normalize(direction, dim=-1),
        }

    def extra_repr(self) -> str:
        along = f"{self.slices} learned" if self.slices else "axes"
        return (
            f"temperature={self.temperature}, tau={self.tau}, sorting={self.sorting}, "
            f"slices={along}"
        )
