"""ESPFormer's attention: a doubly-stochastic baseline from soft sorts, without iteration."""

import math
from numbers import Real

import torch
from torch import Tensor

from asap_exp.attention.base import Attention, register
from asap_exp.ops.backend import full_precision
from asap_exp.ops.reference.espformer import espformer_attention, espformer_plan


@register("espformer")
class EspformerAttention(Attention):
    """Attention with an expected sliced plan.

    `temperature` >= 0 is an inverse temperature: 0 weighs all slices equally. `tau` > 0 softens the
    sorts.
    """

    def __init__(self, *, temperature: float = 10.0, tau: float = 1e-3) -> None:
        super().__init__()
        for name, x in (("temperature", temperature), ("tau", tau)):
            if isinstance(x, bool) or not isinstance(x, Real):
                raise TypeError(f"{name} must be a number, got {x!r}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and >= 0, got {temperature}")
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be finite and > 0, got {tau}")
        self.options = {"temperature": float(temperature), "tau": float(tau)}

    @torch.compiler.disable  # a graph of all slices takes a minute to compile
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        with full_precision(q):
            return espformer_attention(q, k, v, key_padding_mask=key_padding_mask, **self.options)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        with full_precision(q):
            return espformer_plan(q, k, key_padding_mask=key_padding_mask, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
