"""Measures of a plan per head, over the valid tokens.

Plans are `[B, H, N, M]`, 0 at padded positions; `key_padding_mask` is `[B, N]`, True = padded.
Every function returns `[H]`: a mean over the samples that have a valid token, or a maximum if named
so.
"""

import torch
from torch import Tensor

from asap_exp.attention.base import padded_pairs


def row_error(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return mean_i |sum_j A_ij - 1|."""
    return _token_mean((plan.sum(dim=-1) - 1).abs(), key_padding_mask)


def column_error(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return mean_j |(m/n) sum_i A_ij - 1|."""
    return _token_mean(_column_deviation(plan), key_padding_mask)


def largest_column_error(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return max_j |(m/n) sum_i A_ij - 1|, also over samples."""
    deviation = _column_deviation(plan)
    if key_padding_mask is not None:
        deviation = deviation.masked_fill(key_padding_mask[:, None, :], 0.0)
    return deviation.amax(dim=(0, 2))


def l1_row_distance(
    plan: Tensor, teacher: Tensor, key_padding_mask: Tensor | None = None
) -> Tensor:
    """Return mean_i sum_j |A_ij - A'_ij|, between 0 and 2."""
    return _token_mean((plan - teacher).abs().sum(dim=-1), key_padding_mask)


def entropy(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return mean_i -sum_j A_ij log A_ij / log m, between 0 and 1; 0 for a single key.

    A plan with negative entries has that of |A|, whose rows may sum to more than 1.
    """
    row_entropy = torch.special.entr(plan.abs()).sum(dim=-1)
    if key_padding_mask is None:
        num_keys = torch.full((plan.shape[0],), plan.shape[-1], device=plan.device)
    else:
        num_keys = (~key_padding_mask).sum(dim=-1)
    normaliser = num_keys.clamp(min=2).log().to(plan.dtype)
    return _token_mean(row_entropy / normaliser[:, None, None], key_padding_mask)


def largest_logit(
    q: Tensor, k: Tensor, *, eps: float = 1.0, key_padding_mask: Tensor | None = None
) -> Tensor:
    """Return max |S_ij| with S = q k^T / (eps sqrt(head_dim))."""
    S = q.float() @ k.float().transpose(-1, -2) * (q.shape[-1] ** -0.5 / eps)
    if key_padding_mask is not None:
        padded = padded_pairs(key_padding_mask)
        S = S.masked_fill(padded, 0.0)
    return S.abs().amax(dim=(0, 2, 3))


def _column_deviation(plan: Tensor) -> Tensor:
    """Return |(m/n) sum_i A_ij - 1| `[B, H, M]`; a padded batch has n = m, so the ratio is 1."""
    n, m = plan.shape[-2:]
    return (plan.sum(dim=-2) * (m / n) - 1).abs()


def _token_mean(x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Average `x` `[B, H, N]` over the valid tokens of each sample, then over samples: `[H]`."""
    if key_padding_mask is None:
        return x.mean(dim=(0, 2))
    x = x.masked_fill(key_padding_mask[:, None, :], 0.0)
    num_valid = (~key_padding_mask).sum(dim=-1)
    per_sample = x.sum(dim=-1) / num_valid.clamp(min=1)[:, None]
    return per_sample.sum(dim=0) / (num_valid > 0).sum().clamp(min=1)
