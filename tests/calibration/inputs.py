"""Fabricated recordings of one layer, padded or not, and a map to fit to them."""

from typing import Any

import torch
from torch import Tensor

from asap_exp.attention import AsapAttention, LayerInputs, SinkhornAttention
from asap_exp.calibration.kl import Target, teacher_target
from asap_exp.calibration.ridge import random_slices

HEADS, TOKENS, DIM, SLICES = 2, 9, 4, 3


def inputs(samples: int, seed: int, *, padded: bool = False) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (2 * torch.randn(samples, HEADS, TOKENS, DIM, generator=generator) for _ in range(3))
    mask = None
    if padded:
        mask = torch.arange(TOKENS) >= torch.arange(3, 3 + samples)[:, None]
    return LayerInputs(q, k, v, mask)


def poisoned(data: LayerInputs) -> LayerInputs:
    """The same with NaN at every padded place."""
    q, k, v, mask = data
    q, k, v = (t.masked_fill(mask[:, None, :, None], float("nan")) for t in (q, k, v))
    return LayerInputs(q, k, v, mask)


def targets(*data: LayerInputs, num_iters: int = 5) -> list[Target]:
    return [teacher_target(each, SinkhornAttention(num_iters=num_iters)) for each in data]


def small_map(
    *, refine: int = 0, slices: int = SLICES, everything: bool = False, seed: int = 0
) -> AsapAttention:
    """Far from any teacher: a fit has something to do."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.1 * torch.randn(HEADS, slices, generator=generator)
    query_weight = 0.1 * torch.randn(HEADS, DIM + 1, generator=generator)
    theta = random_slices(HEADS, slices, DIM, seed=seed)
    further: dict[str, Any] = {}
    if everything:
        further["adaptive_weight"] = 0.1 * torch.randn(HEADS, 5, slices, generator=generator)
        further["logit_weight"] = 0.1 * torch.randn(HEADS, 3, generator=generator)
    if everything and refine:
        further["relaxation"] = torch.full((HEADS,), 1.2)
    return AsapAttention(theta, weight, query_weight, **further, refine=refine)


def unit_scale(slices: int = SLICES, *, everything: bool = False) -> Tensor:
    return torch.ones(HEADS, slices + DIM + 1 + (5 * slices + 3 if everything else 0))
